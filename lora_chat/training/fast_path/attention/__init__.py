"""Attention over packed batches, one backend per file.

- backends: How a device attends by segments
- blocks: Where each dialogue of a flat micro-batch stands, and how to lay them side by side for attention
- cpu: The products of attention by segments, and their gradients
- gather_index: Where each head of each token goes for attention, and back
- gpu: Attention by segments on a GPU
- interface: Attention by segments for layers that are not fused
"""

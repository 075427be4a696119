"""Attention over packed batches, one backend per file.

- backends: Choice of the backend by device
- blocks: Dialogues of similar length side by side in padded blocks
- cpu: Attention in padded blocks, and its gradient
- gather_index: Rows of each head of each token in the blocks
- gpu: Attention by PyTorch's variable-length kernel
- interface: Attention function for layers that are not fused
- varlen_kernel: Call of PyTorch's variable-length attention in each version
"""

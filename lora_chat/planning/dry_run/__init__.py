"""Dry runs of real models on the meta device, in which every live byte is counted and no weights exist.

- autocast: autocast to bf16 for tensors on the meta device
- curves: bytes as a function of tokens
- kernels: replacements of fused attention and norms
- layer_passes: bytes of the decoder layers of any model in its forward and backward pass
- live_bytes: counter of the bytes of live tensors
- measure: the shape of a model of any architecture
- quantized_layers: replacements of bitsandbytes' layers
"""

"""Decoder layers with fused LoRA products.

- attention_block: The first half of a decoder layer
- decoder_layer: Which decoder layers are covered, and their fused forward in place of transformers' own while
- lora_group: LoRA layers that read the same states, as one product
- matmul: Matrix products that keep both cores busy
- mlp_block: The second half of a decoder layer
- qk_norm: RMS norm of every query and key head (Qwen3), in place
- rms_norm: RMS norm (arXiv 1910.07467) and its gradient, by kernels that read the states once
"""

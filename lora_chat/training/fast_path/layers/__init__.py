"""Decoder layers with fused LoRA products.

- attention_block: First half of a decoder layer, with attention
- decoder_layer: Selection of the covered decoder layers, and their fused forward
- lora_group: LoRA layers over the same input as one product
- matmul: Matrix products that use both CPU threads
- mlp_block: Second half of a decoder layer, with the MLP
- qk_norm: RMS norm of query and key heads, in place
- rms_norm: RMS norm and its gradient
"""

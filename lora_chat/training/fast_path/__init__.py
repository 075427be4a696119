"""Faster training with the same result, and the checks that prove it.

- check_gradients: Before training
- check_packing: Before training
- fused_lora: LoRA linear layers as one autograd step
- lm_head_loss: The LM head on supervised positions alone, its gradient made in the forward pass
- packed_batch: A micro-batch as one row without padding
- packing: Micro-batches of one optimizer step by their tokens
- select: Which parts of the fast path cover a model, proven on it
"""

"""Faster training with the same result, and the checks that prove it.

- agreed_parts: The parts that all processes of a group can use
- check_gradients: Check that the fast path gives the adapter the same gradients
- check_packing: Check that packed dialogues do not see each other
- check_windows: Check that packed attention keeps the model's sliding or chunked windows
- fused_lora: LoRA linear layers as one autograd step
- lm_head_loss: LM head and cross entropy on supervised positions only
- packed_batch: A micro-batch as one row without padding
- packing: Distribution of a step's dialogues over micro-batches
- select: Selection of the parts that cover a model
- self_test: A try of the attention for packed batches on a device
"""

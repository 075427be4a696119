"""Decoder layers with LoRA as two autograd steps, their gradients written out: exact, in fewer operations."""

"""Fine-tune a chat model with LoRA on the computer you have, and know what it learned."""

__version__ = "0.1.0"

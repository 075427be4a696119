"""Supervised fine-tuning with TRL's SFTTrainer.

- checkpoint_content: The content of a checkpoint, checked before it is continued
- optimizer_state: The optimizer's state from a checkpoint, compared with the parameters that it belongs to before
- progress_bar: What a person sees of training
- sft: Encoded dialogues + adapted model -> TRL's SFTTrainer -> report
- sft_config: Training plan -> TRL's settings
- stop_request: The first Ctrl-C, SIGTERM or SIGHUP asks training to stop after its step
- trainer: SFTTrainer that takes an optimizer step's micro-batches as they were packed, and remembers what it trained
"""

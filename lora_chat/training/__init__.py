"""Supervised fine-tuning with TRL's SFTTrainer.

- adapter_dtype: Dtype of the adapter during training and after it
- cached_weights: Dequantized weights on the GPU during training
- candidate_plans: Plans with smaller micro-batches, for data that does not fit in memory
- checkpoint_content: Checks of a checkpoint's content before it is resumed
- embedding_noise: Noise on the embeddings in training
- gradient_sum: Sum of the gradients of a step over the processes
- kept_step: The choice of the step whose adapter is saved
- loss_scale: Skipped steps of the gradient scaler in fp16
- measure_validation: Measurement of the validation set during training
- measured_steps: The log of measured steps, and the copies of the best ones
- optimizer_groups: Settings of the optimizer's parameter groups
- optimizer_state: Checks of a resumed optimizer's state
- progress_bar: Progress of training on the terminal
- reporters: Services that receive the metrics of training
- row_scores: Loss and predicted tokens of each validation row
- sft: The training, from encoded dialogues to the result
- sft_config: Settings of TRL's SFTTrainer
- single_card: TRL's settings for one card
- step_copies: Copies of the trained weights of measured steps
- step_collator: Collators of the dialogues of a step to micro-batches
- stock_path: Checks of the padded batches and the LM head of TRL
- stop_request: Signals that ask training to stop
- token_scores: Loss of each supervised token of a validation batch
- trainer: SFTTrainer with packed micro-batches
- training_run: The input and the result of one training
- triton_head: TRL's loss on a GPU with or without Triton
"""

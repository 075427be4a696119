"""Learn: TRL's SFTTrainer behind one function."""

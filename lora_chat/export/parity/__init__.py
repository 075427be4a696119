"""Parity check: does an exported model compute the outputs of the adapted model?

- compare: measure the differences of two models and check them against tolerances
- default_prompts: samples from built-in questions, for adapters without held-out dialogues
- format: write parity reports as files, and format them for the terminal
- llama_cpp_runner: run samples through a GGUF in llama.cpp
- llama_cpp_worker: the separate process in which llama.cpp runs
- outputs: collect logits, loss and replies of a model
- peft_runner: run samples through an adapter folder in PEFT
- peft_worker: the separate process in which PEFT runs without lora_chat
- reader_runner: run samples through a merged folder in another Python environment
- reader_worker: the process in another environment, without lora_chat
- reading_device: choose the device on which a merged model is read again
- reference: the record of an adapted model's outputs in runs and receipts
- reference_outputs: measure a reference, and the distance of a loaded model from it
- samples: held-out dialogues that both models process
- tolerances: largest allowed differences, with reasons
- transformers_runner: run samples through a model in Transformers
"""

"""Whether the exported model computes what the adapted model computes.

- compare: A delivered model against the adapted one it was made from
- default_prompts: Probes where no held-out dialogues are at hand
- format: Proofs as files beside what was delivered, and as lines for a person
- llama_cpp_runner: A GGUF that is open in llama.cpp, asked what a proof asks
- llama_cpp_worker: llama.cpp in a process of its own
- outputs: What a model says to probes
- peft_runner: An adapter's folder that is open in plain PEFT, asked what a proof asks
- peft_worker: Plain PEFT in a process of its own that imports nothing of lora_chat
- samples: Held-out dialogues on which a delivered model is asked what the adapted model was asked
- tolerances: How far a delivered model may be from the adapted one, per format, with the reason
- transformers_runner: A model that is open in transformers, asked what a proof asks
"""

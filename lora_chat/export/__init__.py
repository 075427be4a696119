"""Merged models and the formats of other programs.

- gguf: The merged model, or the adapter alone, as a GGUF for llama.cpp, proven by llama.cpp
- llama_cpp_converter_worker: Run one of llama.cpp's converters in a process of its own
- llama_cpp_converters: llama.cpp's own converters, in a folder of their own
- merge: Adapters folded into a 16-bit base, proven by reading what was written
- ollama: A Modelfile beside a GGUF
- ollama_template: A chat template in Go, as Ollama wants it, found by asking the Jinja template
- peft: The adapter as a plain folder that PEFT and what is built on it open, proven by PEFT without lora_chat
"""

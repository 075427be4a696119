"""The Python API's calls inside the user's own process, such as a notebook, which they leave unchanged.

- arguments: the arguments of the calls as the pipeline takes them
- call: one call at a time, with everything that it changes in the process restored after it
- library_state: the settings of libraries that a call changes for its time
- loaded_model: an adapted model with its tokenizer, ready for `generate` of Transformers
- process_state: the settings of the process that a call changes for its time
- progress: the progress of a run as events for a function of the user
- reply: replies to a message or a dialogue, and continuations of a text
- results: the result of a run
- run: a fine-tuning run with events, which Ctrl-C and errors of the user's function stop in order
- tensor_state: the modes of PyTorch in which a call computes
"""

"""Adapters of other tools: what their folders contain, read without running anything of it.

- base_layers: the linear layers of a base, and the shapes of an adapter's matrices for them
- chat_template: the chat template beside an adapter
- fit: another tool's adapter as the same function in PEFT's current form
- layer_match: the layers that a PEFT config selects
- mlx: adapters of mlx-lm
- peft_settings: settings of PEFT that are read, ignored or refused
- tensor_names: names of tensors in files of several tools and versions
- tokenizer_check: the tokenizer beside an adapter, compared with the base's
- weights_file: the file of an adapter's weights
"""

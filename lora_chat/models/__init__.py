"""Base models and adapters: loading, files, checks and identity.

- adapter: attaching, loading, writing and merging LoRA weights through PEFT
- adapter_checks: which layers can carry LoRA, and whether an adapter's weights fit a base
- adapter_config: an untrusted adapter, and its settings after they were checked
- adapter_files: an adapter's folder in PEFT's layout
- architectures: facts about model architectures, one row for each `model_type`
- auto_class: the class of Transformers with which a base is loaded
- base_config: config and size of a base whose weights may not be on this machine
- base_files: size limits of a base's small files
- base_model: finding and loading a base
- base_settings: the fields of a base's JSON files that its identity compares
- bound_adapter: an adapter together with its base and tokenizer
- bundled: the bases that need no hub
- causality: whether a base predicts each token from the earlier ones only
- config_checks: checks of an untrusted config.json, for code and for numbers out of bounds
- equivalent_settings: settings that differ as they are written and load the same
- float32_products: linear layers of a 16-bit model that multiply in fp32
- hub: bases from the Hugging Face hub
- identity: digests and settings that bind an adapter to its base, tokenizer and template
- integrity: damaged or changed files, and cached digests
- shape: sizes of a base and its numbers of weights, from its config.json
- stop_tokens: the tokens at which a reply ends
- text_layers: the linear layers that can carry LoRA for text
- tokenizer_limits: the eos and pad tokens of a loaded tokenizer, and tokens without an embedding
- tokenizer_parts: a loaded tokenizer in parts, so that a message can name the part that differs
- weight_check: comparison of a base's files with the weights of its model
- weight_differences: allowed differences, and the message for others
- weight_files: the files of weights that Transformers opens for a base
"""

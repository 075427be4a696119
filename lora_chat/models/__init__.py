"""Base models, adapters, their files and their identity.

- adapter: LoRA weights (arXiv 2106.09685) attached, loaded and merged through PEFT
- adapter_checks: Whether layers can carry LoRA, and whether an adapter's weights have their places in a base
- adapter_config: An adapter as somebody hands it over
- adapter_files: A folder in PEFT's layout
- architectures: Facts about model architectures, one row for each `model_type`
- base_config: What is known of a base without its weights
- base_files: The small files of a base, bounded before transformers and tokenizers read them
- base_model: Find and load a base
- base_settings: The settings of a base that shape what it computes, read from its JSON files field by field
- bound_adapter: An adapter with the base that it belongs to
- bundled: Bases that need no hub
- config_code: Fields of a base's config by which Transformers fetches or runs other code, refused by name before it
- config_limits: Bounds on the numbers of a base's config, checked before transformers builds anything of that size
- equivalent_settings: Settings that one file names and another leaves out, and that load the same
- file_digests: Digests of large files, remembered between commands
- file_stats: Marks of a base's files, compared after loading
- hub: A base from the Hugging Face hub
- identity: Digests and settings that bind an adapter to the base, tokenizer and template it was trained with
- integrity: Weights of a base that are not what was downloaded or written
- shape: The widths of a base, from its config.json alone
- stop_tokens: The tokens at which a reply ends
- tokenizer_parts: A tokenizer as it was loaded, part by part, so that a message can name the part that differs
- weight_files: The files of weights that Transformers opens for a base, and what makes it open others
"""

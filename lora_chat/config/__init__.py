"""The settings that the user chooses: recipes, plans, and limits that several packages share.

- adapter_section: the `adapter` section
- audit: the `audit` section, which is also the table of the kinds of findings
- base: the base class and the field types that all sections share
- bundled_recipes: the recipes that come with lora_chat
- columns: the `columns` of the `data` section: names, lists and format texts
- data: the `data` section: sources of dialogues, and how they are read
- data_loss: the settings `turns` and `loss` of data and of its sources
- generation_section: the `evaluation.generation` section
- inherited_settings: the settings that the adapter of `adapter.start` decides
- layer_patterns: regular expressions for names of layers
- limits: limits that the planner and other packages share
- load: YAML and `--set section.key=value` -> Recipe
- lora_variants: the variants of LoRA, one row for each
- metric_choice: names of metrics, and the pattern of numeric match
- plan: Recipe + hardware -> Plan
- recipe: all sections of a recipe
- sizes: sizes of memory such as 12GiB
- stored_quantization: the quantization of a base's files, and the share of weights that a mode quantizes
- system_message: the `system` setting of the `data` section
- training_section: the `training` section
- validation_errors: messages for invalid settings, with file and line
"""

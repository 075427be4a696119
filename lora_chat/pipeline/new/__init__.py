"""A recipe for new data and a device: `lora-chat new`.

- base_candidates: The bases that fit the data and the device, each with its plan, and the default
- base_proposals: The table of bases that may be proposed
- column_roles: The columns of a table that become messages
- data_settings: The sections `data` and `evaluation` of a new recipe
- example_data: The example data of a task
- find_source: The format or columns of training data, from its first rows
- format: A new recipe and its reasons as text
- inputs: The data, the task and the device, chosen or recognised
- introduction: The comment at the beginning of a new recipe
- languages: The languages of texts, by scripts and frequent words
- new_recipe: The steps from data to a checked recipe
- profile: Counts, lengths, languages, turns and labels of data
- recipe_name: The file name of a new recipe
- recipe_text: The text of a recipe with comments
- sibling_files: The validation and test data beside training data
- target: The device that a recipe is for
- task_kinds: The table of tasks
- task_signs: The signs by which tasks are recognised
- token_lengths: The lengths of data in tokens
- training_settings: The sections `base`, `adapter` and `training` of a new recipe
- user_questions: Questions to the user in a terminal
"""

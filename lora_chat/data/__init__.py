"""Files to input_ids and labels.

- dataset: Training, validation and test sets, built from stores and left on disk
- dialogue: Dialogues, their messages and documents, and the valid order of roles
- format: Format data statistics and example dialogues for the terminal
- lengths: Lengths of rows, prompts and replies, for the planner
- row_lengths: Lengths of rows and their supervised tokens, and the largest rows
- sources: Find, check and encode the sources of a recipe
- split: Choose held-out dialogues and repeat or sample sources by weight
- statistics: Statistics of the training data
"""

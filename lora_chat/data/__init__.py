"""Files to input_ids and labels.

- dataset: Stores -> what is trained and what is held out, still on disk
- dialogue: What a dialogue is
- format: How the account of the data looks, and dialogues with what carries loss
- lengths: How long rows are and how much of them carries loss, from their columns as they lie on disk
- sources: The sources that a recipe names -> stores, checked
- split: Which dialogues are held out, and which part of a source is seen
- statistics: What there is to train on, in figures
"""

"""Whether dialogues of an evaluation were trained on, by digests that are kept in place of the training dialogues.

- digest_set: sorted digests of 64 bits, or a sample of them, and which values they contain
- digests_file: the file of training digests in a run, checked when it is read
- find_overlap: the training digests and evaluation dialogues -> how each of these was seen in training
- item_digests: dialogues and blocks of plain text -> digests of their questions, replies and passages
- training_digests: all training dialogues -> their digests and MinHash signatures
"""

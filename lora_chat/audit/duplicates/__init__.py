"""Near duplicates and leaks into the validation set.

- minhash: MinHash signatures (Broder 1997)
- near_duplicates: Which dialogues repeat another, exactly or nearly, and which of them stand on both sides of the
- shingles: Texts -> hashes of their runs of three words, many texts at once
"""

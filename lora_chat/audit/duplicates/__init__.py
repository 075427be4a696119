"""Repeated dialogues, and leaks into the validation and test set.

- minhash: MinHash signatures (Broder 1997), and the pairs of texts worth comparing
- near_duplicates: dialogues that repeat another one, exactly or nearly, within a split or across both
- shingles: texts -> hashes of their sequences of three words
"""

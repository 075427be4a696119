"""Dialogues that say the same: exact copies by digest, near copies by MinHash."""

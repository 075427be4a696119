"""Encoded dialogues on disk.

- build: Files -> a store, in several processes
- cache: Stores that were built before
- encode_chunk: A chunk of rows -> what is stored of it
- ledger: The account of a source
- store: Encoded dialogues on disk, mapped into memory when they are read
"""

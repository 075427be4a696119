"""Encoded dialogues on disk.

- build: Encode files into a store, in several processes
- cache: Cache of stores, found by the digest of all their inputs
- encode_chunk: Encode a chunk of rows; the work of one process
- ledger: Counts of the lines, rows and tokens of a source
- store: Write and read the encoded dialogues of a source
"""

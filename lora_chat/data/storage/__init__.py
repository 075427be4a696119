"""Encoded dialogues on disk.

- block_packer: Pack plain text into blocks of one length
- build: Encode files into a store, in several processes
- cache: Cache of stores, found by the digest of all their inputs
- encode_chunk: Encode a chunk of rows; the work of one process
- ledger: Counts of the lines, rows and tokens of a source
- parts: Encode files that are read over a network in parts
- results: Results that were computed from stores, kept beside them
- store: The encoded dialogues of a source, read from disk
- store_writer: Write the encoded dialogues of a source
"""

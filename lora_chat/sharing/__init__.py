"""Parcels: an adapter as one small file that a receiver can verify.

- build: The members of a parcel, made of an adapter and the facts about it
- collect: What a run's folder says about its adapter, in figures and digests
- compatibility: Where an adapter can be used besides lora_chat
- container: The parcel's container
- figures: The figures of a receipt
- hub: Members of a parcel as a repository of the Hugging Face hub, and back
- markdown: Foreign text in Markdown
- model_card: The model card
- parcel: A parcel opened
- receipt: What a parcel says of itself
- signature: Signatures by an elliptic curve key, in the format of OpenSSF model signing
- tensor_checks: The weights of a parcel, read in memory and believed only where config, names, shapes and values
- usage: How an adapter is used in other programs, as they would be typed
"""

"""Parcels: an adapter as one small file that a receiver can verify.

- ability_receipts: Strict models of general abilities, recital, overlap and kept step in a receipt
- build: build the members of a parcel and write the file
- card_parts: parts that the cards of a run and of a parcel share
- collect: collect the figures and digests of a run for its receipt
- compatibility: report which other programs can use an adapter
- container: pack and unpack the zip container of a parcel
- expert_tensors: checks of the LoRA pairs of experts
- evaluation_receipt: Strict models of the verdict and its figures in version 4 of the receipt
- figures: strict models of the figures in a receipt, with their bounds
- hub: upload the members of a parcel to the Hugging Face hub, and download them
- hub_metadata: metadata that the hub reads at the top of a card
- judgement_receipt: Strict model of human votes in a receipt
- lineage: the parents of an adapter in its receipt
- lineage_card: the parts of a model card about parents
- markdown: escape untrusted text for Markdown
- model_card: write the README.md of an adapter
- parcel: open a parcel and check all of it
- receipt: strict model of `receipt.json`, and its encoding
- run_card: write the model card of an adapter in its run folder
- shared_text: the policy of the audit for what a parcel shares
- signature: sign and check the members in the format of OpenSSF model signing
- statement: write and check the in-toto statement of a parcel
- tensor_checks: check the names, shapes and values of the weights in a parcel
- usage: commands that use an adapter in other programs
"""

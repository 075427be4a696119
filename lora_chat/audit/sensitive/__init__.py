"""Secrets and personal data.

- assigned_secrets: Secrets known by what stands before them
- emails: E-mail addresses
- hidden_keys: Keys of a vendor's format that are broken by blanks and line feeds, or encoded in base64 or as
- ibans: International bank account numbers
- key_formats: How vendors write their keys, from what they document
- national_id_formats: How states write the numbers they give to people
- national_ids: National identity, tax and social security numbers of people
- normalize: Disguised spellings of a text, decoded
- payment_cards: Payment card numbers
- phones: Phone numbers, checked against the numbering plans in Google's libphonenumber
- scan: All secrets and personal data of a text, none overlapping
- secrets: Keys, tokens, private keys and passwords in a text
"""

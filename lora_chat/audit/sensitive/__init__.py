"""Search for secrets and personal data in a text.

- assigned_secrets: secrets that the text before them announces
- cue_words: words that announce a value, matched as whole words
- emails: e-mail addresses
- examples: placeholders and published examples, which are not findings
- hidden_keys: keys that are broken by blanks and line feeds, or encoded
- ibans: international bank account numbers
- key_formats: the formats of vendors' keys
- national_ids: national identity, tax and social security numbers of people
- normalize: disguised spellings of a text, decoded
- payment_cards: payment card numbers
- phone_cues: words that announce a phone number
- phones: phone numbers, checked against the numbering plans in Google's libphonenumber
- scan: all secrets and personal data of a text, without overlaps
- secrets: keys, tokens, private keys and passwords
"""

"""Search for secrets, personal data, duplicates, leaks and odd replies in the data.

- auditor: the audit of a data set in one pass
- data_files: reading of word lists and formats in JSON
- excerpts: masked excerpts of findings
- format: findings as text
- json_strings: the strings inside JSON, each with its key as context
- known_values: redacted values, which get the same mark wherever they occur
- redaction: copies of dialogues with marks such as `[E-MAIL]` in place of secrets and personal data
- redactor: redaction before dialogues are encoded, with a name for the cache
- report: the findings of an audit
- text_fields: the texts of a dialogue, each with its message
"""

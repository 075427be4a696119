"""Secrets, personal data, duplicates, leaks and odd replies in the data.

- auditor: Goes through dialogues once and remembers little of each
- format: How the findings of an audit look
- json_strings: The strings inside JSON, each with its key as context
- excerpts: What is shown of a finding
- redaction: A copy of a dialogue with marks such as `[E-MAIL]` in place of secrets and personal data
- redactor: Replace secrets and personal data by marks before dialogues are encoded
- report: What an audit says when all dialogues have been seen
- text_fields: The texts of a dialogue, one by one, each with the message it stands in
"""

"""Checks of dialogues, except secrets and personal data.

- abusive_language: slurs, insults, threats and strong profanity, found with a word list
- check_table: the tables of checks that the auditor iterates over
- heavy_hitters: the most frequent items of a stream, in fixed memory
- markup: control tokens, chat markup of other models, and template code
- replies: replies without training value
- source_balance: the share of each file in the trained text
"""

"""Checks of one dialogue at a time.

- abusive_language: Slurs, insults, threats and strong profanity, by word list
- abusive_words: A short list of words and phrases that are abuse in nearly every context
- heavy_hitters: The most frequent items of a stream, in fixed memory
- markup: Control tokens, other models' chat markup and template code in what is said
- replies: Replies that teach nothing
- source_balance: How much each file gives to what is learned
"""

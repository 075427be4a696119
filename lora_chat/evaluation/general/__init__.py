"""General abilities of base and adapted model: a set of short items, the checks of their replies, and the comparison.

- checks: The table of checks, with the arguments of each
- compare: The comparison of both models' replies
- items: Items with their checks, read from the shipped set or a file of the user
- measure: Greedy replies to items
- report: The result of the comparison
- reply_forms: Checks of the form of a reply
- reply_texts: Checks of words and numbers in a reply
- selection: Which items are asked
"""

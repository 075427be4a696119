"""Generation and chat.

- chat: conversation in the terminal or through a pipe
- generation: prompt ids -> greedy replies, in batches whose keys and values fit the limit
"""

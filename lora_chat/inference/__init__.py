"""Generation and chat.

- batch_support: whether a model can generate with a cache and in batches of several lengths
- chat: conversation in the terminal or through a pipe
- generation: prompt ids -> replies, in batches whose keys and values fit the limit
- sampler: random choice of next tokens that does not depend on the batch
- text_decoder: ids of a reply, or of the continuation of a text -> text

Package: continuous (replies to many requests at once).
"""

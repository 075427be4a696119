"""Secrets and personal data in replies, found by the audit's detectors and replaced, or a reason to end the reply.

- clean_arguments: the filter of the arguments of a tool call
- filter_settings: what is looked for, what happens to it, and which values are allowed
- pieces: the words of a text, and whether they can be a part of a secret
- private_key: when a private key can be judged, and how its rest is dropped
- reply_filter: the filter of one reply while it is written
- stretch: where a text can be cut so that nothing is found across the cut
- value_search: the search of a part of a reply and the replacement of its values
"""

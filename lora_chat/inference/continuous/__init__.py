"""Replies to many requests at once by one model in memory.

- request: what a request asks for, and what it receives
- batch_generator: the thread that owns the model and answers requests
"""

"""Adapters of other tools: what their folders contain, read without running anything of it.

- chat_template: the chat template beside an adapter
"""

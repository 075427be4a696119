"""The routes of OpenAI's API.

- chat_completions: replies to conversations, whole or streamed
- chat_request: what a request for a reply may contain
- model_list: the models that answer
- routes: the table of these routes
"""

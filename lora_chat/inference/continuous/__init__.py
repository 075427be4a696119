"""Replies to many requests at once by one model in memory.

- batch_check: whether a model's requests can share steps
- batch_generator: the thread that owns the model and answers requests
- batched_model: prompts -> keys and values; one step for the next tokens of all requests
- prefix_store: prompts that were read, for later prompts that begin in the same way
- request: what a request asks for, and what it receives
- request_answers: the requests that are being answered, in shared steps or one after another
- row_layers: linear layers and LoRA layers in a step with several requests and adapters
- row_products: products of several rows that have the bits of single rows
- running_request: requests that wait or are being answered
- shared_attention: attention of each request over its own keys and values
- single_reply: a reply by plain generation
- token_choice: next tokens and their log-probabilities
- token_pool: memory for keys and values
"""

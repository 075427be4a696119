"""Dialogues to input_ids and labels, with the chat template of the base.

- bundled_templates: The chat templates of this package and the digests of the trusted ones
- call_tags: Read calls and results in tags as tool calls, if the chat template writes the same tags
- chat_template: Choose a chat template and render messages with it
- content_places: The places of a chat that carry meaning, and copies with other values
- control_tokens: Mark control tokens in content, so that they are encoded as text
- encode: Encode dialogues as input_ids and labels, with loss on the replies
- kept_tokens: Tokens that stay tokens when they occur in message text
- ordinary_tokens: Added tokens that are ordinary text, such as HTML elements
- new_messages: Find the messages of a prompt that no earlier row contains
- render_requests: Chats to render, and the requests that carry them to the template worker
- rendered_row: A row as text, and the labels of its tokens
- template_drops: Find out whether a template leaves out part of a dialogue
- template_renderer: Start the worker that renders untrusted chat templates, and send it requests
- template_worker: Worker process that renders untrusted chat templates under limits
- thinking_switch: The switch of chat templates for thoughts
- tokenizer: Tokenize rendered texts and find the token borders of turns
- turns: Split a rendered dialogue into the prompt and the reply of each turn
"""

"""Dialogues to input_ids and labels, with the chat template of the base.

- bundled_templates: The chat templates of this package and the digests of the trusted ones
- call_tags: Read calls and results in tags as tool calls, if the chat template writes the same tags
- chat_template: Choose a chat template and render messages with it
- content_places: The places of a chat that carry meaning, and copies with other values
- control_tokens: Mark control tokens in content, so that they are encoded as text
- encode: Encode dialogues as input_ids and labels, with loss on the replies
- kept_tokens: Tokens that stay tokens when they occur in message text
- ordinary_tokens: Added tokens that are ordinary text, such as HTML elements
- lookahead_traps: Replace every expression of a template that could look at later messages
- message_lists: Find the lists of messages in a parsed chat template
- new_messages: Find the messages of a prompt that no earlier row contains
- prefix_rendering: Render the beginnings of a dialogue by one rendering of the whole
- render_requests: Chats to render, and the requests that carry them to the template worker
- rendered_row: A row as text, and the labels of its tokens
- stepwise_render: Render a chat with a changed template, and return the text of each message
- stepwise_template: Change a chat template so that one rendering shows the text of every beginning of a dialogue
- template_drops: Find out whether a template leaves out part of a dialogue
- template_renderer: Start the worker that renders untrusted chat templates, and send it requests
- template_worker: Worker process that renders untrusted chat templates under limits
- thinking_switch: The switch of chat templates for thoughts
- tokenizer: Tokenize rendered texts and find the token borders of turns
- turns: Split a rendered dialogue into the prompt and the reply of each turn
"""

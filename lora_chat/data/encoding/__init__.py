"""Dialogues to input_ids and labels, with the chat template of the base.

- chat_template: Choose a chat template, and render with it exactly as it will be served
- control_tokens: Control tokens in what people wrote
- encode: Dialogue -> input_ids and labels
- template_renderer: The parent's side of the process that renders chat templates of strangers (`template_child`)
- template_worker: Compiles and renders chat templates of strangers, in a process of its own with limits on time and
- tokenizer: Rendered texts -> token ids, and how many of them stand for the first characters
- turns: For each reply of a dialogue
"""

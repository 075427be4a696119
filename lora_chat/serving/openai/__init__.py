"""The routes of OpenAI's API.

From a request to its prompt:
- request_body: bytes -> a checked request, or an error that names the field
- request_fields: the table of fields that are accepted if they ask for nothing, and refused otherwise
- chat_request: the fields of a request for a reply to a conversation
- completion_request: the fields of a request for a text that continues a prompt
- conversation: messages and tools in the form of the chat template
- chat_prompt: the ids of a conversation
- reply_task: the generation that a request asks for, within the limits of the server
- reply_length: the largest number of tokens of a reply
- prompt_threads: threads in which requests are prepared

From tokens to an answer:
- running_replies: the replies of a request while the generator works on them
- choice: one reply: tokens in, parts of an answer out
- text_stream: token ids -> text, up to a stop text
- reply_parser: text -> reasoning, content and tool calls
- filtered_parts: the filter for content, reasoning and tool arguments
- visible_stops: stop texts of a filtered reply
- token_texts: the text and bytes of tokens, and log-probabilities
- model_traits: facts about the tokenizer and template of a model
- server_sent_events: the form of a stream

Routes:
- chat_completions: replies to conversations
- completions: texts that continue a prompt
- tokenize: the tokens of a prompt
- model_list: the models that answer, and what is refused
- routes: the table of these routes
"""

"""The check whether a server elsewhere answers as the adapted model does.

- ask_endpoint: requests in the form of OpenAI's API, and their checked answers
- compare_endpoint: the figures of the comparison and the verdict
- endpoint_prompts: the prompts that are sent
- judge_reply: a reply beside the adapted reply to the same prompt
- local_replies: the adapted model and its base, asked the same prompts on this machine
- token_forms: texts of tokens as servers show them
- verify_endpoint: the check from top to bottom
"""

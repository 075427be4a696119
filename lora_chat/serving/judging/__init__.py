"""Blind human judgement: two replies without names, and votes in the run.

- access: A one-time token and a key, without which nobody votes
- served_desk: The desk of a server that answers requests, too
- reply_pairs: Replies of both models to held-out prompts, generated ahead of the judge
- judge_session: The pairs of one judge, the order of their replies, and the votes
- judge_desk: The session of a server, opened when it is first asked for
- judge_requests: Strict models of the requests
- routes: The routes below /judge/
"""

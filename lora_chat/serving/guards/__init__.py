"""Who may ask, and how much: checks before any work.

- answer_headers: headers that every answer has
- body_guard: the body of a request: type, length, time, depth
- host_guard: names of this server in the Host header
- key_file: the file of keys, which is read again when it changes
- key_guard: the key of a request, and the slow answer to wrong ones
- origin_guard: the page that a request comes from
- request_guard: all checks of a request, in order, around the application
- request_headers: headers of a request, each once
"""

"""An OpenAI-compatible server of one base and its adapters, and its page.

- api_errors: errors in OpenAI's form
- app: the ASGI application, from the routes and guards
- page_routes: the page and its files
- run_server: the process of a server: socket, signals, end
- server_options: every limit and switch of a server

Packages: guards (who may ask, and how much), openai (the routes of OpenAI's API).
"""

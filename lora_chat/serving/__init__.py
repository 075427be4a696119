"""An OpenAI-compatible server of one base and its adapters, and its page.

- adapter_folder: a folder that is watched for parcels
- admin_commands: the commands of the admin socket
- admin_socket: a local socket by which models are loaded and unloaded
- api_errors: errors in OpenAI's form
- app: the ASGI application, from the routes and guards
- background_messages: messages printed by a thread
- http_protocol: HTTP/1.1 on one connection, with limits
- listen: addresses to listen on, and which of them only this machine reaches
- page_routes: the page and its files
- request_log: one line for each request, and the log of content
- request_record: figures of one request for log and metrics
- run_judge: the server of `lora-chat judge`
- run_server: the process of a server: checks, signals, end
- run_time_loading: loading and unloading of models while a server runs
- server_options: every limit and switch of a server
- status_routes: whether the server answers, and its metrics
- telemetry: counts and latencies for Prometheus

Packages: guards (who may ask, and how much), judging (blind human judgement), openai (the routes of OpenAI's API),
reply_filter (secrets and personal data in replies).
"""

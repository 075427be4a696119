"""The table of the routes of OpenAI's API."""

from starlette.routing import Route

from lora_chat.serving.openai.chat_completions import answer_chat
from lora_chat.serving.openai.model_list import list_models

ROUTES = (
    Route("/v1/chat/completions", answer_chat, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
)

"""The table of the routes of OpenAI's API."""

from starlette.routing import Route

from lora_chat.serving.openai.chat_completions import answer_chat
from lora_chat.serving.openai.completions import answer_completion
from lora_chat.serving.openai.model_list import list_models, show_model
from lora_chat.serving.openai.tokenize import answer_tokenize

ROUTES = (
    Route("/v1/chat/completions", answer_chat, methods=["POST"]),
    Route("/v1/completions", answer_completion, methods=["POST"]),
    Route("/v1/tokenize", answer_tokenize, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", show_model, methods=["GET"]),
)

"""The models that answer, with their checks and defaults, and what is refused."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from lora_chat.errors import LoraChatError
from lora_chat.serving.openai.completions import DEFAULT_MAX_TOKENS
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.openai.prompt_threads import run_in_thread
from lora_chat.serving.openai.reply_task import find_model

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.admitted_model import AdmittedModel
    from lora_chat.serving.server_options import ServerOptions


async def list_models(request: "Request") -> JSONResponse:
    """Return all models with their checks, and what is refused with its reason."""
    models, options = request.app.state.models, request.app.state.options
    data = await run_in_thread(lambda: [describe_model(model, options) for model in models.list()])
    return JSONResponse({"object": "list", "data": data, "refused": dict(models.refused)})


async def show_model(request: "Request") -> JSONResponse:
    """Return one model."""
    state = request.app.state
    model = find_model(state.models, request.path_params["model"])
    return JSONResponse(await run_in_thread(lambda: describe_model(model, state.options)))


def describe_model(model: "AdmittedModel", options: "ServerOptions") -> dict[str, object]:
    """Return a model as JSON."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lora_chat",
        "adapter": None if model.adapter is None else model.name,
        "context_length": model.positions,
        "max_model_len": model.positions,
        "max_reply_tokens": options.max_new_tokens,
        "system": model.system,
        "defaults": {
            "temperature": 0,
            "top_p": 1,
            "system": "the system message of training, if a request has none",
            "max_tokens": "the rest of the context, at most max_reply_tokens",
            "max_tokens_of_completions": DEFAULT_MAX_TOKENS,
        },
        "capabilities": _describe_capabilities(model),
        "checks": [asdict(check) for check in model.checks],
    }


def _describe_capabilities(model: "AdmittedModel") -> dict[str, bool] | None:
    """Return what the chat template of a model can express; None if it cannot be rendered."""
    traits = traits_of(model)
    try:
        return {
            "tools": traits.offers_tools,
            "reasoning": traits.writes_reasoning,
            "enable_thinking": traits.switch is not None,
        }
    except LoraChatError:
        return None

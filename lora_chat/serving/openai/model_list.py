"""The models that answer."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.admitted_model import AdmittedModel


async def list_models(request: "Request") -> JSONResponse:
    """Return all models with their checks, and what is refused with its reason."""
    models = request.app.state.models
    data = [describe_model(model) for model in models.list()]
    return JSONResponse({"object": "list", "data": data, "refused": dict(models.refused)})


def describe_model(model: "AdmittedModel") -> dict[str, object]:
    """Return a model as JSON."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lora_chat",
        "context_length": model.positions,
        "system": model.system,
        "checks": [asdict(check) for check in model.checks],
    }

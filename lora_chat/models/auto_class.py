"""The class of Transformers with which a base is loaded, from its config."""

from typing import TYPE_CHECKING, Any

from lora_chat.errors import UnavailableError, first_line
from lora_chat.models.causality import check_causal_config
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def find_auto_class(config: "PretrainedConfig", name: str) -> Any:
    """Return the auto class that loads a base for text.

    It is AutoModelForCausalLM, or the class of multimodal models for bases that have no model for text alone
    (Mistral 3, Qwen-VL, LLaVA). PEFT's users load the base with the same class, so the names in an adapter fit.
    Raises UnavailableError for an architecture that does not continue text.
    """
    import transformers

    model_type = sanitize_line(str(getattr(config, "model_type", "")), 100)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    for mapping, auto_class in (
        (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.AutoModelForImageTextToText),
        (transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING, transformers.AutoModelForMultimodalLM),
    ):
        if type(config) in mapping:
            return auto_class
    raise UnavailableError(
        f"{name} is of the architecture {model_type}, for which Transformers {transformers.__version__} has no "
        "language model. Fix: use a causal language model."
    )


def make_meta_model(config: "PretrainedConfig", name: str) -> "PreTrainedModel":
    """Build the layers that a config describes on the meta device. Raises UnavailableError."""
    import torch

    check_causal_config(config, name)
    auto_class = find_auto_class(config, name)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=False)
            return model
    except Exception as error:  # an untrusted config: inconsistent sizes raise many types of errors
        raise UnavailableError(f"The config of {name} does not describe a model: {first_line(error)}") from error

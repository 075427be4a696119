"""Errors of Transformers' own code for an architecture, as one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_chat.errors import LoraChatError, UnavailableError, first_line
from lora_chat.models.architectures import find_architecture
from lora_chat.system.memory_limit import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@contextmanager
def explain_model_errors(config: "PretrainedConfig", base: str, purpose: str) -> Iterator[None]:
    """Raise UnavailableError for an error of a model's code; `purpose` is what the base was used for.

    The architectures of the table run in every mode, so their errors are errors of lora_chat.
    """
    try:
        yield
    except (LoraChatError, OSError):
        raise
    except Exception as error:
        model_type = getattr(config, "model_type", "")
        if is_out_of_memory(error) or find_architecture(model_type).layer_family:
            raise
        import transformers

        raise UnavailableError(
            f"{purpose} with {base} failed in the code of Transformers {transformers.__version__} for the architecture "
            f"{model_type}: {type(error).__name__}: {first_line(error)}\n"
            "Fix: try --set quantization.dtype=float32 and --set quantization.mode=none, or use another base."
        ) from error


def describe_unreadable_config(base: str, error: Exception) -> UnavailableError:
    """Return the error for a config that Transformers cannot read, with the remedy."""
    return UnavailableError(
        f"The config of {base} cannot be read: {first_line(error)}\n"
        "Fix: use the base as its authors publish it, with model_type in config.json; a new architecture needs a newer "
        "version of Transformers."
    )

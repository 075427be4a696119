"""A run, parcel, adapter or base opened for chat."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.config.plan import plan_inference_precision
from lora_chat.config.recipe import QuantizationSection
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.encoding.thinking_switch import ThinkingValue
from lora_chat.inference.chat import ChatSession
from lora_chat.models.adapter_files import is_adapter_folder
from lora_chat.models.base_model import load_base_model, load_tokenizer, read_max_positions
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.base_precision import adopt_base_precision
from lora_chat.pipeline.choose_thinking import override_default
from lora_chat.pipeline.named_base import find_named_base
from lora_chat.pipeline.open_adapter import TrustOptions, is_adapter_of_hub, open_adapter
from lora_chat.runs.run_folder import is_run_folder
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_SHOWN_CHARACTERS = 2000
"""Maximum characters shown of a system message from another user."""


@dataclass(frozen=True)
class ChatModel:
    """A model that was found but not loaded, and everything that its prompts need."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]
    system: str | None
    """System message of training."""
    positions: int | None
    """Largest number of tokens of a prompt with its reply; None if unknown."""
    load: "Callable[[], PreTrainedModel]"


def open_chat(
    source: str,
    mode: str | None,
    system: str | None,
    max_new_tokens: int,
    as_json: bool,
    trust: TrustOptions,
    thinking: ThinkingValue | None = None,
    generation: GenerationSection = GREEDY,
) -> ChatSession:
    """Load a model for chat. Raise UnavailableError if `source` is not a run, parcel, adapter or base."""
    chat_model = find_chat_model(source, mode, trust, thinking, shows_system=system is None)
    system = chat_model.system if system is None else system
    return ChatSession(
        chat_model.load(), chat_model.tokenizer, chat_model.stop_ids, system, max_new_tokens, as_json, generation
    )


def find_chat_model(
    source: str, mode: str | None, trust: TrustOptions, thinking: ThinkingValue | None = None, *, shows_system: bool
) -> ChatModel:
    """Find a run, parcel, adapter or base. Raise UnavailableError if `source` is none of them.

    `shows_system` prints the system message of another user, because it is used.
    """
    path = expand_user_path(source)
    if is_run_folder(path) or is_adapter_folder(path) or is_parcel(path) or is_adapter_of_hub(source):
        opened = open_adapter(source, trust, mode)
        precision, base, tokenizer = opened.precision, opened.adapter.base, opened.adapter.tokenizer
        system = opened.system
        if system and shows_system and not opened.made_by_user:
            logger.info(_format_system_message(source, system))
        load = partial(opened.adapter.load, precision)
    else:
        hardware = detect_hardware()  # before a base is downloaded
        base = find_named_base(source)
        quantization = QuantizationSection.model_validate({"mode": mode or "none"})
        precision = adopt_base_precision(plan_inference_precision(quantization, hardware, None), base, hardware)
        tokenizer, system = load_tokenizer(base), None
        install_template(tokenizer)
        load = partial(load_base_model, base, precision)
    stop_ids = read_stop_ids(base, tokenizer)
    if thinking is not None:
        override_default(tokenizer, thinking)

    def load_model() -> "PreTrainedModel":
        logger.info(f"Loading {source} ({precision.mode}, {precision.dtype}, on {precision.device})")
        return load().eval()

    return ChatModel(tokenizer, stop_ids, system, read_max_positions(base), load_model)


def _format_system_message(source: str, system: str) -> str:
    """Format the system message of another user, because it is part of the model's input."""
    num_hidden = len(system) - _MAX_SHOWN_CHARACTERS
    more = f" ... and {num_hidden:,} more characters, not shown" if num_hidden > 0 else ""
    return (
        f"{sanitize_line(source)} has a system message (replace it with --system TEXT): "
        f"{sanitize_line(system[:_MAX_SHOWN_CHARACTERS])}{more}"
    )

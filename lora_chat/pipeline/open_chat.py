"""RUN, PARCEL, ADAPTER or BASE -> a chat that is ready to answer."""

from lora_chat.config.plan import make_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.errors import BaseUnavailableError
from lora_chat.inference.chat import Chat
from lora_chat.models.adapter_files import is_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import Trust, open_thing
from lora_chat.runs.run_folder import is_run
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.console import say
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.sanitize import visible
from lora_chat.system.user_path import user_path

_SHOWN = 2000
"""Characters of a system message that somebody else chose."""


def open_chat(
    thing: str, mode: str | None, system: str | None, max_new_tokens: int, as_json: bool, trust: Trust
) -> Chat:
    """Load what was named. Raises RecipeError if it is nothing that talks."""
    path = user_path(thing)
    if is_run(path) or is_adapter(path) or is_parcel(path):
        opened = open_thing(thing, say, trust, mode)
        precision, base, tokenizer = opened.precision, opened.found.base, opened.found.tokenizer
        if system is None:
            system = opened.system
            if system and not opened.ours:
                say(_told(thing, system))
        stop_ids = read_stop_ids(base, tokenizer)
        say(f"Loading {thing} ({precision.mode}, {precision.dtype}, on {precision.device})")
        model = opened.found.load(precision)
    else:
        try:
            base = find_base(BaseSection(name=thing), say)
        except BaseUnavailableError as error:
            if path.is_dir():  # it is there, and the error says what is wrong with it
                raise
            raise BaseUnavailableError(f"There is no run, parcel, adapter or folder {thing} here.\n{error}") from error
        precision = make_precision(QuantizationSection.model_validate({"mode": mode or "none"}), detect_hardware())
        tokenizer = load_tokenizer(base)
        install_template(tokenizer)
        stop_ids = read_stop_ids(base, tokenizer)
        say(f"Loading {thing} ({precision.mode}, {precision.dtype}, on {precision.device})")
        model = load_base_model(base, precision)
    model.eval()
    return Chat(model, tokenizer, stop_ids, system, max_new_tokens, as_json, say)


def _told(thing: str, system: str) -> str:
    """The line that shows a system message of somebody else, which decides what the model reads."""
    left = len(system) - _SHOWN
    more = f" ... and {left:,} characters more, not shown" if left > 0 else ""
    return f"{visible(thing)} brings a system message (another: --system TEXT): {visible(system[:_SHOWN])}{more}"

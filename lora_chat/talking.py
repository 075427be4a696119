"""RUN, ADAPTER or BASE -> a chat that is ready to answer."""

from pathlib import Path

from lora_chat.console import say
from lora_chat.dialogues.chat_template import install_template
from lora_chat.errors import BaseUnavailableError, RecipeError
from lora_chat.models.adapter_folder import is_adapter, read_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.loading import find_adapter
from lora_chat.models.stop_ids import read_stop_ids
from lora_chat.planning.hardware import detect_hardware
from lora_chat.planning.plan import make_precision
from lora_chat.planning.recipe import BaseSection, QuantizationSection
from lora_chat.run_folder import RunFolder, is_run
from lora_chat.serving.chat import Chat


def open_chat(thing: str, mode: str | None, system: str | None, max_new_tokens: int, as_json: bool) -> Chat:
    """Load what was named. Raises RecipeError if it is nothing that talks."""
    path = Path(thing).expanduser()
    quantization = QuantizationSection(mode="none")
    adapter = path if is_adapter(path) else None
    if is_run(path):
        run = RunFolder(path)
        quantization = run.read_quantization()
        adapter = run.adapter
        if not is_adapter(adapter):
            raise RecipeError(f"The run {path} has no adapter: its training did not get that far.")
    elif adapter and is_run(path.parent):
        quantization = RunFolder(path.parent).read_quantization()
    if mode:
        quantization = QuantizationSection.model_validate({"mode": mode})
    precision = make_precision(quantization, detect_hardware())
    say(f"Loading {thing} ({precision.mode}, {precision.dtype}, on {precision.device})")
    if adapter:
        stored = read_adapter(adapter)
        found = find_adapter(stored, say, own_template=is_run(path))
        if system is None and stored.identity:
            system = stored.identity.system
        base, tokenizer = found.base, found.tokenizer
        install_template(tokenizer)
        model = found.load(precision)
    else:
        try:
            base = find_base(BaseSection(name=thing), say)
        except BaseUnavailableError as error:
            raise BaseUnavailableError(f"There is no run, adapter or folder {thing} here.\n{error}") from error
        tokenizer = load_tokenizer(base)
        install_template(tokenizer)
        model = load_base_model(base, precision)
    model.eval()
    return Chat(model, tokenizer, read_stop_ids(base, tokenizer), system, max_new_tokens, as_json, say)

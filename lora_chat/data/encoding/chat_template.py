"""Choose a chat template and render messages with it, in training exactly as at inference."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.data.encoding.bundled_templates import (
    BOS_PREFIX,
    CHAT_TEMPLATES_BY_NAME,
    DEFAULT_TEMPLATE,
    TRUSTED_TEMPLATE_DIGESTS,
    ChatTemplate,
)
from lora_chat.data.encoding.prefix_rendering import render_with_shared_prefixes
from lora_chat.data.encoding.render_requests import RenderJob
from lora_chat.data.encoding.stepwise_render import find_stepwise_render
from lora_chat.data.encoding.template_renderer import render_in_worker
from lora_chat.data.encoding.tokenizer import TextTokenizer, read_bos_ids
from lora_chat.errors import DataError, IntegrityError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TEMPLATE_BYTES = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"
"""Mark at the start of some text files. A template would write it before every prompt, as three tokens."""


def install_template(tokenizer: "PreTrainedTokenizerBase", choice: str | None = None) -> str:
    """Set the chosen template, or the default one if the tokenizer has none, and return the template in force.

    `choice` is the name of a bundled template or a file. Raises DataError for a file that cannot be read, and for a
    bundled template whose tokens the base's vocabulary lacks.
    """
    if choice is None and not tokenizer.chat_template:
        choice = DEFAULT_TEMPLATE.name
    if choice in CHAT_TEMPLATES_BY_NAME:
        tokenizer.chat_template = _bundled_text(CHAT_TEMPLATES_BY_NAME[choice], tokenizer)
    elif choice:
        tokenizer.chat_template = _read_template(Path(choice))
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            raise DataError(
                "This base has several named chat templates and none is called default. "
                f"Fix: --set data.template={DEFAULT_TEMPLATE.name}, or name a file."
            )
        tokenizer.chat_template = _join_named_templates(tokenizer.chat_template)
    tokenizer.chat_template = str(tokenizer.chat_template).removeprefix(_BYTE_ORDER_MARK)
    return str(tokenizer.chat_template)


def find_earlier_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the template that earlier versions used for a loaded tokenizer: without `tool_use`, with all bytes."""
    template: object = tokenizer.chat_template
    return str(template.get("default") if isinstance(template, dict) else template)


def _join_named_templates(templates: Mapping[str, str]) -> str:
    """Return one template that renders as `default`, and with tools as `tool_use`, as Transformers chooses them.

    The texts begin on their own lines and end in an empty expression, so that the blocks around them strip no blanks.
    """
    default = str(templates["default"]).removeprefix(_BYTE_ORDER_MARK)
    tool_use = str(templates.get("tool_use", default)).removeprefix(_BYTE_ORDER_MARK)
    if tool_use == default:
        return default
    texts = [text.removesuffix("\n") + "{{ '' }}" for text in (tool_use, default)]
    return f"{{% if tools %}}\n{texts[0]}{{% else %}}\n{texts[1]}{{% endif %}}"


def _bundled_text(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a bundled template for this tokenizer, with BOS if the base was pretrained with it."""
    if set(template.required_tokens) - tokenizer.get_vocab().keys():
        raise DataError(
            f"data.template: {template.name} needs a base whose vocabulary contains "
            f"{' and '.join(template.required_tokens)}. Fix: --set data.template={DEFAULT_TEMPLATE.name}."
        )
    return (BOS_PREFIX if template.adds_bos and read_bos_ids(tokenizer) else "") + template.text


def _read_template(path: Path) -> str:
    """Read a template from a file; raises DataError if it is unreadable, empty or too large."""
    try:
        with os.fdopen(open_regular_file(path, follow=True), "rb") as file:
            raw = file.read(_MAX_TEMPLATE_BYTES + 1)
        text = raw.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except IntegrityError as error:  # a device or a pipe, which may have no end
        raise DataError(f"Cannot read the chat template: {error}") from error
    except OSError as error:
        raise DataError(f"Cannot read the chat template {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The chat template {path} is not UTF-8 text (byte {error.start}).") from error
    if not text.strip():
        raise DataError(f"The chat template {path} is empty.")
    if len(raw) > _MAX_TEMPLATE_BYTES:
        raise DataError(f"The chat template {path} has more than {_MAX_TEMPLATE_BYTES:,} bytes.")
    return text


def render_texts(
    tokenizer: "PreTrainedTokenizerBase",
    chats: Sequence[Sequence[ChatMessage]],
    *,
    add_generation_prompt: bool,
    tools: Sequence[ToolDescription] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> list[str]:
    """Return chats as text, each with the opening of a reply if `add_generation_prompt` is set.

    Raises DataError if the template refuses them, and TemplateError if it takes more time or memory than any real one.
    """
    (texts,) = render_jobs(tokenizer, [RenderJob(chats, add_generation_prompt, tools, arguments or {})])
    if isinstance(texts, DataError):
        raise texts
    return texts


def render_jobs(tokenizer: "PreTrainedTokenizerBase", jobs: Sequence[RenderJob]) -> list[list[str] | DataError]:
    """Return the texts of each job, or the reason why the template refuses it.

    Raises TemplateError as `render_texts` does. A template that is not from this package is an untrusted program, so
    it is compiled and rendered in a worker process with limits.
    """
    template, special = str(tokenizer.chat_template), dict(tokenizer.special_tokens_map)

    def render(jobs: Sequence[RenderJob]) -> list[list[str] | DataError]:
        if is_trusted_template(template):
            return [_render_in_process(template, special, job) for job in jobs]
        return render_in_worker(template, special, jobs)

    return render_with_shared_prefixes(jobs, render)


@lru_cache(maxsize=64)
def is_trusted_template(template: str) -> bool:
    """Return whether a template is bundled or belongs to an embedded base, by its digest."""
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest() in TRUSTED_TEMPLATE_DIGESTS


def _render_in_process(template: str, special: dict[str, object], job: RenderJob) -> list[str] | DataError:
    """Render a job with a trusted template."""
    template_args: dict[str, object] = {
        "tools": list(job.tools) if job.tools else None,
        "documents": None,
        **job.arguments,
    }
    try:
        if job.stepwise:
            render_pieces = find_stepwise_render(template)
            if render_pieces is None:
                return DataError("the template looks at later messages")
            (chat,) = job.chats
            return render_pieces(
                messages=list(chat), **template_args, add_generation_prompt=job.add_generation_prompt, **special
            )
        render = _compile_template(template)
        return [
            render(messages=list(chat), **template_args, add_generation_prompt=job.add_generation_prompt, **special)
            for chat in job.chats
        ]
    except Exception as error:
        refusal = DataError(
            f"the base's chat template refuses it: {sanitize_line(str(error) or type(error).__name__, 300)}"
        )
        refusal.__cause__ = error
        return refusal


@lru_cache(maxsize=8)
def _compile_template(template: str) -> Callable[..., str]:
    """Return the render function of a template, compiled in the sandbox of transformers.

    `apply_chat_template` compiles a template in the same way, but copies every message first (transformers,
    `chat_template_utils`). For many renderings of a long dialogue the copies cost more than the template. Messages
    here are plain data and need no copy; a test compares both results.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return cast("Callable[..., str]", _compile_jinja_template(template).render)


def render_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool,
    tools: Sequence[ToolDescription] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> list[int]:
    """Return the token ids of messages, with the opening of a reply if `add_generation_prompt` is set.

    Control tokens inside the content are encoded as plain text, so content cannot open a turn.
    Raises DataError if the template refuses the messages.
    """
    text_tokenizer = TextTokenizer(tokenizer)
    tools = text_tokenizer.mark(tools)
    # Clients send empty keys as null, but templates test whether a key exists.
    non_null_messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,) = render_texts(
        tokenizer,
        [text_tokenizer.mark(non_null_messages)],
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        arguments=arguments,
    )
    return text_tokenizer.tokenize([text])[0].ids

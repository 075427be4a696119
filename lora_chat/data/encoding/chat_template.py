"""Choose a chat template, and render with it exactly as it will be served."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_chat.data.encoding.template_renderer import RenderJob, render_in_worker
from lora_chat.data.encoding.tokenizer import TextTokenizer, read_bos_ids
from lora_chat.errors import DataError, IntegrityError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '### ' + message['role'] | capitalize + ':\n' + message['content'] + eos_token + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}"
)
"""For a base without a template: plain-text role marks, turns ended by the base's eos, no new tokens."""

CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML, for a base whose vocabulary has its two tokens."""

EMBEDDED_TEMPLATE_DIGESTS = frozenset(
    {
        "f91864928fccff928b3068ca784db6275e655e400ccbb28f61d92c0090caf3b3",  # tiny-random
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # smollm2-135m-instruct
    }
)
"""sha256 of the templates of the embedded bases, whose files are written or checked by this package."""

_BOS_PREFIX = "{{- bos_token -}}"
_MAX_TEMPLATE_BYTES = 1 << 20


def install_template(tokenizer: "PreTrainedTokenizerBase", choice: str | None = None) -> str:
    """Give a tokenizer the chosen template, or ours if it has none; returns the template in force.

    Raises DataError for a file that cannot be read, and for ChatML without its tokens.
    """
    if choice == "chatml":
        if {"<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys():
            raise DataError(
                "data.template: chatml needs a base with <|im_start|> and <|im_end|> in its vocabulary; take plain."
            )
        tokenizer.chat_template = CHATML_TEMPLATE
    elif choice == "plain" or (choice is None and not tokenizer.chat_template):
        tokenizer.chat_template = _plain_template(tokenizer)
    elif choice:
        tokenizer.chat_template = _read_template(Path(choice))
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            raise DataError("This base has several named chat templates; none of them is the default.")
        tokenizer.chat_template = tokenizer.chat_template["default"]
    return str(tokenizer.chat_template)


def _plain_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """With the beginning of a text that the base knows from its pretraining, if it has one."""
    return (_BOS_PREFIX if read_bos_ids(tokenizer) else "") + PLAIN_TEMPLATE


def _read_template(path: Path) -> str:
    try:
        with os.fdopen(open_regular_file(path, follow=True), "rb") as file:
            raw = file.read(_MAX_TEMPLATE_BYTES + 1)
        text = raw.decode("utf-8")
    except IntegrityError as error:  # a device or a pipe, which may never end
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
    chats: Sequence[Sequence[dict[str, Any]]],
    *,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[str]:
    """Chats as text under the template, with the opening of a reply if one follows; DataError if it refuses them.

    Raises TemplateError if the template takes more time or memory than any real one.
    """
    (found,) = render_jobs(tokenizer, [RenderJob(chats, add_generation_prompt, tools)])
    if isinstance(found, DataError):
        raise found
    return found


def render_jobs(tokenizer: "PreTrainedTokenizerBase", jobs: Sequence[RenderJob]) -> list[list[str] | DataError]:
    """The texts of each job, or why the template refuses it; TemplateError as in `render_texts`.

    A template is a stranger's program unless it is one of those that this package brings: then it is compiled and
    rendered in a process of its own, with limits.
    """
    template, special = str(tokenizer.chat_template), dict(tokenizer.special_tokens_map)
    if is_trusted_template(template):
        return [_render_in_process(template, special, job) for job in jobs]
    return render_in_worker(template, special, jobs)


@lru_cache(maxsize=64)
def is_trusted_template(template: str) -> bool:
    """Whether a template is one of this package or of an embedded base, by digest."""
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest() in _trusted_digests()


@lru_cache(maxsize=1)
def _trusted_digests() -> frozenset[str]:
    ours = (PLAIN_TEMPLATE, _BOS_PREFIX + PLAIN_TEMPLATE, CHATML_TEMPLATE)
    return frozenset({hashlib.sha256(text.encode()).hexdigest() for text in ours} | EMBEDDED_TEMPLATE_DIGESTS)


def _render_in_process(template: str, special: dict[str, Any], job: RenderJob) -> list[str] | DataError:
    template_args = {"tools": list(job.tools) if job.tools else None, "documents": None}
    try:
        render = _compile_template(template)
        return [
            render(messages=list(chat), **template_args, add_generation_prompt=job.add_generation_prompt, **special)
            for chat in job.chats
        ]
    except Exception as error:
        refused = DataError(
            f"the base's chat template refuses it: {sanitize_line(str(error) or type(error).__name__, 300)}"
        )
        refused.__cause__ = error
        return refused


@lru_cache(maxsize=8)
def _compile_template(template: str) -> Callable[..., str]:
    """A template in transformers' own sandbox.

    `apply_chat_template` compiles it just so, but copies every message first (transformers, `chat_template_utils`):
    with many renderings of a long dialogue that costs more than the template itself. Ours hold plain data only, and
    a test compares both.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return cast("Callable[..., str]", _compile_jinja_template(template).render)


def render_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids of messages under the template, with the opening of a reply if one follows.

    Control tokens inside the content are encoded as plain text, so content can open no turn of its own.
    Raises DataError if the template refuses the messages.
    """
    coder = TextTokenizer(tokenizer)
    tools = coder.mark(tools)
    # Clients send keys that say nothing as null; templates ask whether a key is there.
    non_null_messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,) = render_texts(
        tokenizer, [coder.mark(non_null_messages)], add_generation_prompt=add_generation_prompt, tools=tools
    )
    return coder.tokenize([text])[0].ids

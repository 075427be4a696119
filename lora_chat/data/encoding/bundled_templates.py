"""The chat templates that this package brings, and the templates that it trusts without a sandbox process."""

from collections.abc import Collection
from dataclasses import dataclass

from lora_chat.system.hashing import digest_text

BOS_PREFIX = "{{- bos_token -}}"
"""Start of a template for a tokenizer that begins every text with BOS."""

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '### ' + message['role'] | capitalize + ':\n' + message['content'] + eos_token + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}"
)

CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

# Calls as Hermes writes them. No text contains two closing braces, which some readers of Jinja take for an end.
_TOOLS = (
    "{{- '# Tools\n\nYou may call functions. Each line describes one:\n<tools>\n' -}}"
    "{%- for tool in tools -%}{{- (tool | tojson) + '\n' -}}{%- endfor -%}"
    "{{- '</tools>\n\nWrite each call as JSON with its name and arguments:\n<tool_call>\n' -}}"
    '{{- \'{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>\' -}}'
)
_CALLS = (
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set arguments = call['function']['arguments'] -%}"
    "{%- if message['content'] or not loop.first -%}{{- '\n' -}}{%- endif -%}"
    "{{- '<tool_call>\n{\"name\": ' + (call['function']['name'] | tojson) + ', \"arguments\": ' -}}"
    "{{- (arguments if arguments is string else arguments | tojson) + '}\n</tool_call>' -}}"
    "{%- endfor -%}"
)


def _write_tool_template(system_opening: str, opening: str, end: str, generation_prompt: str) -> str:
    """Return a template with tools; the openings, the end of a turn and the prompt are expressions of Jinja."""
    return (
        "{%- if tools -%}{{- " + system_opening + " -}}"
        "{%- if messages and messages[0]['role'] == 'system' -%}{{- messages[0]['content'] + '\n\n' -}}{%- endif -%}"
        + _TOOLS
        + "{{- "
        + end
        + " -}}{%- endif -%}{%- for message in messages -%}"
        "{%- if not (tools and loop.first and message['role'] == 'system') -%}"
        "{{- " + opening + " + message['content'] -}}" + _CALLS + "{{- " + end + " -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + generation_prompt + " -}}{%- endif -%}"
    )


PLAIN_TOOLS_TEMPLATE = _write_tool_template(
    "'### System:\n'", "'### ' + message['role'] | capitalize + ':\n'", "eos_token + '\n'", "'### Assistant:\n'"
)
CHATML_TOOLS_TEMPLATE = _write_tool_template(
    "'<|im_start|>system\n'",
    "'<|im_start|>' + message['role'] + '\n'",
    "'<|im_end|>\n'",
    "'<|im_start|>assistant\n'",
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that recipes choose by its name in `data.template`.

    Its stop tokens need no field, because they are found by rendering a reply (`models/stop_tokens.py`).
    """

    name: str
    text: str
    """Jinja source, without BOS."""
    required_tokens: tuple[str, ...] = ()
    """Tokens that the base's vocabulary must contain."""
    adds_bos: bool = False
    """Whether the template begins with BOS for a base whose tokenizer begins texts with it."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Return every text that a tokenizer may get from this template."""
        return (self.text, BOS_PREFIX + self.text) if self.adds_bos else (self.text,)


CHAT_TEMPLATES = (
    # Plain-text role marks and the base's eos need no new tokens, so this one suits a base without a template.
    ChatTemplate("plain", PLAIN_TEMPLATE, adds_bos=True),
    ChatTemplate("chatml", CHATML_TEMPLATE, required_tokens=("<|im_start|>", "<|im_end|>")),
    # The same with tools, calls and results, for bases whose template has none.
    ChatTemplate("plain_tools", PLAIN_TOOLS_TEMPLATE, adds_bos=True),
    ChatTemplate("chatml_tools", CHATML_TOOLS_TEMPLATE, required_tokens=("<|im_start|>", "<|im_end|>")),
)
"""Every bundled template. `config/data.py` lists their names as choices of `data.template`."""
CHAT_TEMPLATES_BY_NAME = {template.name: template for template in CHAT_TEMPLATES}
DEFAULT_TEMPLATE = CHAT_TEMPLATES_BY_NAME["plain"]
"""Template for a base that has none."""

EMBEDDED_TEMPLATE_DIGESTS = frozenset(
    {
        "f91864928fccff928b3068ca784db6275e655e400ccbb28f61d92c0090caf3b3",  # tiny-random
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # smollm2-135m-instruct
    }
)
"""sha256 of the templates of the embedded bases, whose files this package writes or checks."""

TRUSTED_TEMPLATE_DIGESTS = EMBEDDED_TEMPLATE_DIGESTS | {
    digest_text(text) for template in CHAT_TEMPLATES for text in template.variants
}
"""sha256 of every template that is rendered in this process."""


def find_tool_template(vocabulary: Collection[str]) -> ChatTemplate:
    """Return the bundled template with tools whose tokens a vocabulary has."""
    names = "chatml_tools", "plain_tools"
    templates = [CHAT_TEMPLATES_BY_NAME[name] for name in names]
    return next(t for t in templates if set(t.required_tokens) <= set(vocabulary))


def find_bundled_template(digest: str) -> ChatTemplate | None:
    """Return the bundled template with this sha256, or None."""
    return next((t for t in CHAT_TEMPLATES if digest in map(digest_text, t.variants)), None)

"""Translate a chat template from Jinja to Go for Ollama; the translation must render every check identically.

The parts of the template are found by rendering marked messages. Ollama: https://github.com/ollama/ollama/blob/main/docs/template.mdx
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_chat.errors import DataError, UsageError

Chat = Sequence[dict[str, str]]
Render = Callable[[Chat, bool], str]
"""Function of messages and of whether the generation prompt follows; returns the text."""

_SYSTEM_MARK, _USER_MARK, _ASSISTANT_MARK, _SECOND_USER_MARK = "\x02s\x02", "\x02u\x02", "\x02a\x02", "\x02v\x02"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class OllamaTemplate:
    """The texts around each message."""

    leading_text: str
    """Text before the first message, unless that is a system message with texts of its own."""
    role_wrappers: Mapping[str, tuple[str, str]]
    """Texts before and after a message, by role. A system message can only be the first.

    Without the role `system`, the chat template refuses or ignores system messages, and this one ignores them.
    """
    generation_prompt: str
    """Text before a reply."""

    @property
    def has_system(self) -> bool:
        """Return whether the template writes a system message."""
        return "system" in self.role_wrappers

    def render(self, messages: Chat) -> str:
        """Render the prompt of a chat."""
        text = "" if messages[0]["role"] == "system" and self.has_system else self.leading_text
        for message in messages:
            if message["role"] in self.role_wrappers:
                before, after = self.role_wrappers[message["role"]]
                text += before + message["content"] + after
        return text + self.generation_prompt

    def to_go(self) -> str:
        """Write the template in Go's language, with all text in string literals, so that it adds no blanks."""
        text = "{{- range $i, $m := .Messages }}"
        is_first = 'and (eq $i 0) (ne $m.Role "system")' if self.has_system else "eq $i 0"
        text += f"{{{{- if {is_first} }}}}{_go_literal(self.leading_text)}{{{{ end }}}}"
        for number, role in enumerate(role for role in _ROLES if role in self.role_wrappers):
            before, after = self.role_wrappers[role]
            text += f'{{{{ {"else if" if number else "if"} eq $m.Role "{role}" }}}}'
            # A reply at the end is to be continued, so it is not closed.
            closing = _go_literal(after)
            if role == "assistant" and after:
                closing = f"{{{{ if ne (len (slice $.Messages $i)) 1 }}}}{closing}{{{{ end }}}}"
            text += _go_literal(before) + "{{ $m.Content }}" + closing
        text += "{{ end }}"
        text += (
            '{{ if and (eq (len (slice $.Messages $i)) 1) (ne $m.Role "assistant") }}'
            + _go_literal(self.generation_prompt)
            + "{{ end }}"
        )
        return text + "{{- end }}"


def derive_ollama_template(render: Render, checks: Sequence[Chat], special: Sequence[str] = ()) -> OllamaTemplate:
    """Derive the Ollama template of a chat template; no part splits one of the `special` tokens.

    Raises UsageError unless both render the examples and `checks` identically.
    """
    template = _derive_parts(render, special)
    examples = [chat for chat in _example_chats() if template.has_system or chat[0]["role"] != "system"]
    for chat in [*examples, *checks]:
        if any(set(message) - {"role", "content"} or message["role"] not in _ROLES for message in chat):
            raise UsageError(
                "The dialogues have tool calls or reasoning, which the template of the Modelfile does not support. "
                "Fix: export with --to gguf."
            )
        if template.render(chat) != render(chat, True):
            raise UsageError(
                "The chat template does more than to put text around messages, so it cannot be translated for Ollama. "
                "Fix: export with --to gguf, which contains the chat template of training."
            )
    return template


def _derive_parts(render: Render, special: Sequence[str]) -> OllamaTemplate:
    """Find the texts between marked messages, and divide them so that no part depends on the message before it."""

    def render_marked(*messages: tuple[str, str]) -> str:
        return render([{"role": role, "content": mark} for role, mark in messages], True)

    user = ("user", _USER_MARK)
    before_first_user, generation_prompt = _partition_once(render_marked(user), _USER_MARK)
    replies = (user, ("assistant", _ASSISTANT_MARK), ("user", _SECOND_USER_MARK))
    before_system, after_system = "", before_first_user
    has_system = _takes_system(render_marked)
    if has_system:
        before_system, rest = _partition_once(render_marked(("system", _SYSTEM_MARK), *replies), _SYSTEM_MARK)
        after_system, rest = _partition_once(rest, _USER_MARK)
    else:
        _, rest = _partition_once(render_marked(*replies), _USER_MARK)
    before_assistant, rest = _partition_once(rest, _ASSISTANT_MARK)
    after_assistant, _ = _partition_once(rest, _SECOND_USER_MARK)
    before_user = _common_suffix([before_first_user, after_system, after_assistant], special)
    system = {"system": (before_system, after_system.removesuffix(before_user))} if has_system else {}
    return OllamaTemplate(
        leading_text=before_first_user.removesuffix(before_user),
        role_wrappers={
            **system,
            "user": (before_user, ""),
            "assistant": (before_assistant, after_assistant.removesuffix(before_user)),
        },
        generation_prompt=generation_prompt,
    )


def _takes_system(render_marked: Callable[..., str]) -> bool:
    """Return whether the chat template writes a system message; some refuse it, and some leave it out."""
    try:
        return _SYSTEM_MARK in render_marked(("system", _SYSTEM_MARK), ("user", _USER_MARK))
    except DataError:
        return False


def _common_suffix(texts: Sequence[str], special: Sequence[str]) -> str:
    """Return the longest common suffix of all texts that does not split a special token."""
    length = 0
    while all(len(text) > length and text[-1 - length] == texts[0][-1 - length] for text in texts):
        length += 1
    while any(_splits_special_token(text, len(text) - length, special) for text in texts):
        length -= 1
    return texts[0][len(texts[0]) - length :]


def _splits_special_token(text: str, position: int, special: Sequence[str]) -> bool:
    """Return whether a cut before `position` splits a special token."""
    return any(token in text[max(0, position - len(token) + 1) : position + len(token) - 1] for token in special)


def _partition_once(text: str, mark: str) -> tuple[str, str]:
    """Return the texts before and after the only occurrence of a mark."""
    before, separator, after = text.partition(mark)
    if not separator or mark in after:
        raise UsageError(
            "The chat template changes the text of messages, so it cannot be translated for Ollama. "
            "Fix: export with --to gguf."
        )
    return before, after


def _example_chats() -> list[Chat]:
    """Return chats of all orders of roles, with characters that need escapes."""
    contents = {"system": " Be brief.\n", "user": "Wer, who?  ", "assistant": '\n我: {{ x }} "quoted" \\n'}
    orders = ["u", "su", "uau", "suau", "uauau", "suauau"]
    names = {role[0]: role for role in _ROLES}
    return [[{"role": names[o], "content": contents[names[o]].strip()} for o in order] for order in orders]


def _go_literal(text: str) -> str:
    """Write a text as a string literal in a Go action. Go has the same escapes as JSON, except surrogate pairs.

    Unprintable characters are escaped too, because Ollama drops them from a Modelfile.
    """
    literal = "".join(c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))
    return f"{{{{ {literal} }}}}" if text else ""


def _escape(character: str) -> str:
    """Write a character as a Go escape."""
    code_point = ord(character)
    return f"\\u{code_point:04x}" if code_point < 0x10000 else f"\\U{code_point:08x}"

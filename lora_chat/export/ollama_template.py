"""A chat template in Go, as Ollama wants it, found by asking the Jinja template; only what both render alike counts.

Ollama: https://github.com/ollama/ollama/blob/main/docs/template.mdx
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_chat.errors import RecipeError

Chat = Sequence[Mapping[str, Any]]
Render = Callable[[Chat, bool], str]
"""Messages, and whether the opening of a reply follows -> text."""

_SYSTEM_MARK, _USER_MARK, _ASSISTANT_MARK, _SECOND_USER_MARK = "\x02s\x02", "\x02u\x02", "\x02a\x02", "\x02v\x02"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class OllamaTemplate:
    """What stands around each message. A first message of another role than system has `leading_text` in front."""

    leading_text: str
    role_wrappers: Mapping[str, tuple[str, str]]
    """By role; a system message stands first."""
    generation_prompt: str
    """Of a reply."""

    def render(self, messages: Chat) -> str:
        """The prompt of a chat."""
        text = "" if messages[0]["role"] == "system" else self.leading_text
        for message in messages:
            before, behind = self.role_wrappers[message["role"]]
            text += before + message["content"] + behind
        return text + self.generation_prompt

    def to_go(self) -> str:
        """In Go's template language. All text stands in string literals: no blank of the template itself counts."""
        text = "{{- range $i, $m := .Messages }}"
        text += f'{{{{- if and (eq $i 0) (ne $m.Role "system") }}}}{_go_literal(self.leading_text)}{{{{ end }}}}'
        for number, role in enumerate(_ROLES):
            before, behind = self.role_wrappers[role]
            text += f'{{{{ {"else if" if number else "if"} eq $m.Role "{role}" }}}}'
            # A reply that is last is one to go on with.
            closing = _go_literal(behind)
            if role == "assistant" and behind:
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
    """The parts of a chat template; `checks` are chats that both must render alike; `special` tokens stay whole.

    Raises RecipeError for a template that does more than to put text around messages.
    """
    found = _derive_parts(render, special)
    for chat in [*_example_chats(), *checks]:
        if any(set(message) - {"role", "content"} or message["role"] not in _ROLES for message in chat):
            raise RecipeError("The dialogues call tools or hold thoughts, which a Modelfile's template here cannot.")
        if found.render(chat) != render(chat, True):
            raise RecipeError(
                "The chat template does more than to put text around messages, so it cannot be written for Ollama. "
                "Export with --to gguf: llama.cpp's programs use the template of training, which stands in the file."
            )
    return found


def _derive_parts(render: Render, special: Sequence[str]) -> OllamaTemplate:
    """What a template puts between messages, divided so that no part depends on the message before it."""

    def said(*roles_and_words: tuple[str, str]) -> str:
        return render([{"role": role, "content": words} for role, words in roles_and_words], True)

    user = ("user", _USER_MARK)
    before_first_user, opening = _partition_once(said(user), _USER_MARK)
    before_system, rest = _partition_once(
        said(("system", _SYSTEM_MARK), user, ("assistant", _ASSISTANT_MARK), ("user", _SECOND_USER_MARK)), _SYSTEM_MARK
    )
    behind_system, rest = _partition_once(rest, _USER_MARK)
    before_assistant, rest = _partition_once(rest, _ASSISTANT_MARK)
    behind_assistant, _ = _partition_once(rest, _SECOND_USER_MARK)
    before_user = _common_suffix([before_first_user, behind_system, behind_assistant], special)
    return OllamaTemplate(
        leading_text=before_first_user.removesuffix(before_user),
        role_wrappers={
            "system": (before_system, behind_system.removesuffix(before_user)),
            "user": (before_user, ""),
            "assistant": (before_assistant, behind_assistant.removesuffix(before_user)),
        },
        generation_prompt=opening,
    )


def _common_suffix(texts: Sequence[str], special: Sequence[str]) -> str:
    """The longest end of all texts that begins inside no special token."""
    length = 0
    while all(len(text) > length and text[-1 - length] == texts[0][-1 - length] for text in texts):
        length += 1
    while any(_splits_special_token(text, len(text) - length, special) for text in texts):
        length -= 1
    return texts[0][len(texts[0]) - length :]


def _splits_special_token(text: str, place: int, special: Sequence[str]) -> bool:
    return any(token in text[max(0, place - len(token) + 1) : place + len(token) - 1] for token in special)


def _partition_once(text: str, mark: str) -> tuple[str, str]:
    before, found, behind = text.partition(mark)
    if not found or mark in behind:
        raise RecipeError("The chat template changes what is said, so it cannot be written for Ollama.")
    return before, behind


def _example_chats() -> list[Chat]:
    words = {"system": " Be brief.\n", "user": "Wer, who?  ", "assistant": '\n我: {{ x }} "quoted" \\n'}
    orders = ["u", "su", "uau", "suau", "uauau", "suauau"]
    names = {role[0]: role for role in _ROLES}
    return [[{"role": names[o], "content": words[names[o]].strip()} for o in order] for order in orders]


def _go_literal(text: str) -> str:
    """Text as a Go string literal in an action; JSON's escapes are Go's, but for surrogate pairs.

    What is not printed is escaped too: Ollama drops such characters from a Modelfile.
    """
    literal = "".join(c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))
    return f"{{{{ {literal} }}}}" if text else ""


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

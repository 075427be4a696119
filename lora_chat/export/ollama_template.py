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

_S, _U, _A, _V = "\x02s\x02", "\x02u\x02", "\x02a\x02", "\x02v\x02"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class OllamaTemplate:
    """What stands around each message. A first message of another role than system has `head` in front."""

    head: str
    around: Mapping[str, tuple[str, str]]
    """By role; a system message stands first."""
    opening: str
    """Of a reply."""

    def render(self, messages: Chat) -> str:
        """The prompt of a chat."""
        text = "" if messages[0]["role"] == "system" else self.head
        for message in messages:
            before, behind = self.around[message["role"]]
            text += before + message["content"] + behind
        return text + self.opening

    def as_go(self) -> str:
        """In Go's template language. All text stands in string literals: no blank of the template itself counts."""
        text = "{{- range $i, $m := .Messages }}"
        text += f'{{{{- if and (eq $i 0) (ne $m.Role "system") }}}}{_literal(self.head)}{{{{ end }}}}'
        for number, role in enumerate(_ROLES):
            before, behind = self.around[role]
            text += f'{{{{ {"else if" if number else "if"} eq $m.Role "{role}" }}}}'
            # A reply that is last is one to go on with.
            closing = _literal(behind)
            if role == "assistant" and behind:
                closing = f"{{{{ if ne (len (slice $.Messages $i)) 1 }}}}{closing}{{{{ end }}}}"
            text += _literal(before) + "{{ $m.Content }}" + closing
        text += "{{ end }}"
        text += (
            '{{ if and (eq (len (slice $.Messages $i)) 1) (ne $m.Role "assistant") }}'
            + _literal(self.opening)
            + "{{ end }}"
        )
        return text + "{{- end }}"


def find_ollama_template(render: Render, checks: Sequence[Chat], special: Sequence[str] = ()) -> OllamaTemplate:
    """The parts of a chat template; `checks` are chats that both must render alike; `special` tokens stay whole.

    Raises RecipeError for a template that does more than to put text around messages.
    """
    found = _take_apart(render, special)
    for chat in [*_usual_chats(), *checks]:
        if any(set(message) - {"role", "content"} or message["role"] not in _ROLES for message in chat):
            raise RecipeError("The dialogues call tools or hold thoughts, which a Modelfile's template here cannot.")
        if found.render(chat) != render(chat, True):
            raise RecipeError(
                "The chat template does more than to put text around messages, so it cannot be written for Ollama. "
                "Export with --to gguf: llama.cpp's programs use the template of training, which stands in the file."
            )
    return found


def _take_apart(render: Render, special: Sequence[str]) -> OllamaTemplate:
    """What a template puts between messages, divided so that no part depends on the message before it."""

    def said(*roles_and_words: tuple[str, str]) -> str:
        return render([{"role": role, "content": words} for role, words in roles_and_words], True)

    user = ("user", _U)
    before_first_user, opening = _split(said(user), _U)
    before_system, rest = _split(said(("system", _S), user, ("assistant", _A), ("user", _V)), _S)
    behind_system, rest = _split(rest, _U)
    before_assistant, rest = _split(rest, _A)
    behind_assistant, _ = _split(rest, _V)
    before_user = _common_end([before_first_user, behind_system, behind_assistant], special)
    return OllamaTemplate(
        head=before_first_user.removesuffix(before_user),
        around={
            "system": (before_system, behind_system.removesuffix(before_user)),
            "user": (before_user, ""),
            "assistant": (before_assistant, behind_assistant.removesuffix(before_user)),
        },
        opening=opening,
    )


def _common_end(texts: Sequence[str], special: Sequence[str]) -> str:
    """The longest end of all texts that begins inside no special token."""
    length = 0
    while all(len(text) > length and text[-1 - length] == texts[0][-1 - length] for text in texts):
        length += 1
    while any(_cuts(text, len(text) - length, special) for text in texts):
        length -= 1
    return texts[0][len(texts[0]) - length :]


def _cuts(text: str, place: int, special: Sequence[str]) -> bool:
    return any(token in text[max(0, place - len(token) + 1) : place + len(token) - 1] for token in special)


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, behind = text.partition(mark)
    if not found or mark in behind:
        raise RecipeError("The chat template changes what is said, so it cannot be written for Ollama.")
    return before, behind


def _usual_chats() -> list[Chat]:
    words = {"system": " Be brief.\n", "user": "Wer, who?  ", "assistant": '\n我: {{ x }} "quoted" \\n'}
    orders = ["u", "su", "uau", "suau", "uauau", "suauau"]
    names = {role[0]: role for role in _ROLES}
    return [[{"role": names[o], "content": words[names[o]].strip()} for o in order] for order in orders]


def _literal(text: str) -> str:
    """Text as a Go string literal in an action; JSON's escapes are Go's, but for surrogate pairs.

    What is not printed is escaped too: Ollama drops such characters from a Modelfile.
    """
    literal = "".join(c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))
    return f"{{{{ {literal} }}}}" if text else ""


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

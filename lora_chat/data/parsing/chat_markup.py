"""The marks with which chat templates open turns, to recognise a chat that is already rendered as text."""

import re
from dataclasses import dataclass
from functools import cached_property

_CHARACTERS_PER_REPLY = 4000
"""Most characters of a text for each mark of a reply in it, if it does not begin with a mark. A text with fewer marks
only quotes them."""


@dataclass(frozen=True)
class ChatMarkup:
    """The marks of a family of chat templates; one entry of `CHAT_MARKUPS`."""

    name: str
    title: str
    user: str
    """Pattern of the beginning of a user's turn. Repetitions are bounded, so that a search is linear."""
    assistant: str
    """Pattern of the beginning of a reply."""
    hints: tuple[str, ...]
    """Texts of which a user's mark has at least one, in any case of letters."""

    @property
    def text_note(self) -> str:
        """Return the name of the note for a text that is a rendered chat."""
        return f"rendered_text_{self.name}"

    @property
    def text_title(self) -> str:
        """Return the title of that note."""
        return (
            f"texts are chats rendered with the marks of {self.title}, trained as plain text with loss on the "
            "questions too (bring them as `messages`)"
        )

    @property
    def messages_note(self) -> str:
        """Return the name of the note for a dialogue whose messages contain rendered turns."""
        return f"rendered_messages_{self.name}"

    @property
    def messages_title(self) -> str:
        """Return the title of that note."""
        return (
            f"dialogues have turns rendered with the marks of {self.title} inside their messages, trained as plain "
            "characters (bring each turn as a message)"
        )

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Return the compiled patterns of both marks."""
        return re.compile(self.user, re.MULTILINE), re.compile(self.assistant, re.MULTILINE)


CHAT_MARKUPS = (
    ChatMarkup(
        "chatml", "ChatML", r"<\|im_start\|>\s{0,3}(?:user|human)\b", r"<\|im_start\|>\s{0,3}assistant\b", ("im_start",)
    ),
    ChatMarkup(
        "llama3",
        "Llama 3",
        r"<\|(?:start_header_id|header_start)\|>\s{0,3}user\b",
        r"<\|(?:start_header_id|header_start)\|>\s{0,3}assistant\b",
        ("start_header_id", "header_start"),
    ),
    ChatMarkup(
        "granite",
        "Granite",
        r"<\|start_of_role\|>\s{0,3}user\b",
        r"<\|start_of_role\|>\s{0,3}assistant\b",
        ("start_of_role",),
    ),
    ChatMarkup("gpt_oss", "gpt-oss", r"<\|start\|>user\b", r"<\|start\|>assistant\b", ("<|start|>",)),
    ChatMarkup("deepseek", "DeepSeek", r"<｜[\w▁ ]{0,20}User｜>", r"<｜[\w▁ ]{0,20}Assistant｜>", ("user｜>",)),
    ChatMarkup(
        "tags",
        "tags such as <|user|> (Phi, Zephyr, GLM, Command)",
        r"(?i:<\|\w{0,20}(?:user|human|prompter)(?:_\w{1,20})?\|>)",
        r"(?i:<\|\w{0,20}(?:assistant|chatbot|model|bot)(?:_\w{1,20})?\|>)",
        ("<|",),
    ),
    ChatMarkup(
        "gemma",
        "Gemma",
        r"<(?:start_of_turn|\|turn)>\s{0,3}user\b",
        r"<(?:start_of_turn|\|turn)>\s{0,3}model\b",
        ("start_of_turn>", "<|turn>"),
    ),
    ChatMarkup("llama2", "Llama 2 or Mistral", r"\[INST\]", r"\[/INST\]", ("[inst]",)),
    ChatMarkup("exaone", "EXAONE", r"\[\|(?:user|Human)\|\]", r"\[\|assistant\|\]", ("[|user|]", "[|human|]")),
    ChatMarkup("nemotron", "Nemotron", r"<extra_id_1>User\b", r"<extra_id_1>Assistant\b", ("extra_id_1",)),
    ChatMarkup("openchat", "OpenChat", r"GPT4 (?:Correct )?User:", r"GPT4 (?:Correct )?Assistant:", ("gpt4",)),
    ChatMarkup("openchatkit", "OpenChatKit", r"^<human>:", r"^<bot>:", ("<human>:",)),
    ChatMarkup("chatglm", "ChatGLM", r"^问：", r"^答：", ("问：",)),
    ChatMarkup(
        "headings",
        "headings such as ### Instruction: (Alpaca)",
        r"^#{2,3} ?(?:Instruction|User|Human|Prompt)s?:",
        r"#{2,3} ?(?:Response|Assistant|Output):",
        ("##",),
    ),
    ChatMarkup("vicuna", "Vicuna", r"(?:^|(?<=\s)|(?<=>))USER:", r"(?:^|(?<=\s)|(?<=>))ASSISTANT:", ("user:",)),
    ChatMarkup(
        "speakers",
        "lines such as Human: and Assistant:",
        r"^(?:Human|User):",
        r"^(?:Assistant|AI|Bot|Chatbot):",
        ("human:", "user:"),
    ),
)
"""Every family of marks. A text belongs to the first one that matches."""

_FIRST_MARK = re.compile(
    r"\s{0,100}(?:<[|｜]|<(?:s|bos|extra_id_[01]|human)>|\[(?:gMASK|SYSTEM_PROMPT|BOS)\]|\[\||"
    r"(?:### ?)?(?:System|SYSTEM)(?: Prompt)?:)"
)
"""Beginning of a text that begins with a mark other than one of a user's turn."""


def find_rendered_chat(text: str) -> ChatMarkup | None:
    """Return the markup of a text that is a rendered chat: turns of a user and replies, not only a quotation.

    Such a text begins with a mark, or has a mark of a reply for each `_CHARACTERS_PER_REPLY` characters.
    """
    lower = text.lower()
    for markup in CHAT_MARKUPS:
        if any(hint in lower for hint in markup.hints) and _is_rendered(text, *markup.patterns):
            return markup
    return None


def _is_rendered(text: str, user: re.Pattern[str], assistant: re.Pattern[str]) -> bool:
    """Return whether a text has a user's turn, then a reply, and enough marks for its length."""
    first = user.search(text)
    if first is None or assistant.search(text, first.end()) is None:
        return False
    if not text[: first.start()].strip() or _FIRST_MARK.match(text):
        return True
    replies = sum(1 for _ in assistant.finditer(text, first.end()))
    return replies * _CHARACTERS_PER_REPLY >= len(text)

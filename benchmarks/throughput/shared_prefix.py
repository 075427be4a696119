"""Put dialogues under one long system message, like an assistant with house rules or tools."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RULES = (
    "You take orders at the counter of a small café and answer questions about the menu.",
    "Greet the guest once, at the beginning, and keep every reply to one or two sentences.",
    "Drinks come in three sizes: small, medium and large; medium is meant when no size is named.",
    "Milk can be whole, skimmed, oat or soy, and oat milk costs forty cents more.",
    "An extra shot of espresso costs sixty cents, and syrup costs thirty cents a pump.",
    "Decaffeinated coffee is available for every drink except cold brew.",
    "Pastries are baked in the morning; after four o'clock ask whether another one would do.",
    "Name ingredients when asked, and always mention nuts, gluten, eggs and milk.",
    "Never promise that a drink is free of traces of nuts, because one machine is used for all.",
    "Repeat the whole order before it is sent, with sizes, milk and extras, and wait for a yes.",
    "If the guest changes something, repeat only the line that changed.",
    "Ask for a name for the cup unless the guest has given one.",
    "Orders are ready after about five minutes, and after ten when more than six drinks are wanted.",
    "Guests collect their orders at the bar on the left, and pay there in cash or by card.",
    "Vouchers are valid for drinks only, one for each visit.",
    "Do not discuss other cafés, the news or the people who work here.",
    "When a guest is unhappy, apologise once, offer a new drink and call the manager if that does not help.",
    "Large orders for an office need a day's notice and a telephone number.",
    "The café opens at seven on weekdays and at eight on Saturdays, and closes at six.",
    "On Sundays only the window to the garden is open, with filter coffee and cake.",
)


def make_system_message(tokenizer: "PreTrainedTokenizerBase", tokens: int) -> str:
    """Return the first rules that have at least `tokens` tokens."""
    for count in range(1, len(_RULES) + 1):
        message = " ".join(_RULES[:count])
        if len(tokenizer.encode(message, add_special_tokens=False)) >= tokens:
            return message
    raise SystemExit(f"The rules of the café have fewer than {tokens} tokens.")


def write_with_system(source: Path, target: Path, system: str) -> None:
    """Copy JSON lines of `messages`, with `system` in place of any system message."""
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as file:
        for line in lines:
            messages = [message for message in json.loads(line)["messages"] if message["role"] != "system"]
            row = {"messages": [{"role": "system", "content": system}, *messages]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

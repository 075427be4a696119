"""GPUs by name, with the figures of their makers' papers."""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lora_chat.errors import RecipeError
from lora_chat.planning.device import Speed, Target

CONTEXT = 450 * 2**20
"""Bytes that the driver and cuBLAS take of a card; 300 to 600 MiB by driver and card, and measured where one is."""
LAUNCH = 2e-3
"""Seconds to start all operations of a decoder layer with LoRA, forward and backward."""
LOW, HIGH = 0.25, 0.75
"""Share of its peak that training comes out at. torchtune's 8B runs on an RTX 4090 reach 0.68 in 4 bits and 0.87 in
bf16, with long rows and no padding; short rows and Hugging Face's layers reach less."""


@dataclass(frozen=True)
class Card:
    """What a maker says of a card."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """16-bit tensor products with fp32 sums, without sparsity."""
    bandwidth: float
    """Bytes a second."""
    bfloat16: bool
    source: str


@cache
def cards() -> tuple[Card, ...]:
    """All that are known."""
    rows = json.loads((files("lora_chat.planning") / "cards.json").read_text(encoding="utf-8"))
    return tuple(
        Card(
            row["name"],
            row["memory_mib"] * 2**20,
            1e12 * row["tflops"],
            1e9 * row["bandwidth_gb_s"],
            row["bfloat16"],
            row["source"],
        )
        for row in rows
    )


def find_card(name: str) -> Card:
    """`RTX 4090`, `4090`, `rtx4090` or `NVIDIA GeForce RTX 4090`; raises RecipeError for one that is not known."""
    wanted = _plain(name)
    found = {_plain(card.name): card for card in cards()}
    if wanted in found:
        return found[wanted]
    matching = [card for key, card in found.items() if wanted and key.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    close = difflib.get_close_matches(wanted, list(found), n=3, cutoff=0.5)
    near = [card.name for card in matching or [found[key] for key in close] or cards()]
    raise RecipeError(
        f"--gpu {name}: no such card is known here. Near are: {', '.join(near)}.\n"
        "Any other one: --memory 12GiB, with the memory it has."
    )


def card_target(card: Card) -> Target:
    """A card that has nothing else to do."""
    speed = Speed(
        card.flops, card.bandwidth, LAUNCH, LOW, HIGH, f"from the card's figures ({card.source}), not measured on it"
    )
    return Target(
        "cuda",
        card.name,
        card.memory,
        card.memory,
        CONTEXT,
        at_hand=False,
        speed=speed,
        bfloat16=card.bfloat16,
    )


def memory_target(size: int) -> Target:
    """Some card with so much memory."""
    return Target("cuda", f"a GPU of {size / 2**30:g} GiB", size, size, CONTEXT, at_hand=False)


def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9]", " ", name.lower()).split()
    plain = "".join(word for word in words if word not in ("nvidia", "geforce", "graphics"))
    return plain.removeprefix("rtx") if plain.startswith("rtx") else plain

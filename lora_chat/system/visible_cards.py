"""The cards that CUDA_VISIBLE_DEVICES leaves visible, and the variable that makes one of them the only one."""

import os
from dataclasses import dataclass

from lora_chat.system.nvidia_driver import NvidiaCard
from lora_chat.system.operating_system import is_wsl

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE, PCI_ORDER = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
HIDE_ALL = "-1"
"""Value that hides every card; an empty value would delete the variable on Windows."""


@dataclass(frozen=True)
class VisibleCard:
    """A card that this process may use."""

    entry: str
    """Value of CUDA_VISIBLE_DEVICES that makes it the only visible card."""
    card: NvidiaCard | None
    """The card in NVML; None for a part of a card (MIG), or if its number cannot be mapped."""


def hides_every_card() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES is set and names no card."""
    value = os.environ.get(VISIBLE_VARIABLE)
    return value is not None and not _parse_entries(value)


def find_visible_cards(cards: tuple[NvidiaCard, ...]) -> list[VisibleCard]:
    """Return the visible cards in CUDA's order, as CUDA reads the variable.

    The list ends at the first entry that is not a card, and is empty if an entry is repeated:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    value = os.environ.get(VISIBLE_VARIABLE)
    if value is None:
        return [VisibleCard(_make_entry(card), card) for card in cards]
    visible: list[VisibleCard] = []
    for entry in _parse_entries(value):
        if entry.startswith("MIG-"):
            visible.append(VisibleCard(entry, None))
        elif entry.isdigit():
            if int(entry) >= len(cards):
                break
            card = cards[int(entry)] if _numbers_are_in_pci_order(cards) else None
            visible.append(VisibleCard(_make_entry(card) if card else entry, card))
        else:
            matches = [card for card in cards if card.uuid.startswith(entry)]
            if len(matches) != 1:
                break
            visible.append(VisibleCard(matches[0].uuid, matches[0]))
    return visible


def _make_entry(card: NvidiaCard) -> str:
    """Return the value that shows one card: its number in WSL, where identifiers are untried, else its identifier."""
    return str(card.index) if is_wsl() else card.uuid


def _numbers_are_in_pci_order(cards: tuple[NvidiaCard, ...]) -> bool:
    """Return whether CUDA counts the cards as NVML does; by default it puts the fastest kind first."""
    return os.environ.get(ORDER_VARIABLE) == PCI_ORDER or len({card.name for card in cards}) <= 1


def _parse_entries(value: str) -> list[str]:
    """Return the entries of the variable up to the first one that cannot be a card."""
    entries: list[str] = []
    kind = next((prefix for prefix in ("GPU-", "MIG-") if value.strip().startswith(prefix)), "")
    for part in value.split(","):
        entry = part.strip()
        if not (entry.startswith(kind) if kind else entry.isdigit()):
            break
        if entry in entries:
            return []
        entries.append(entry)
    return entries

"""The fast path that all processes of a group can use: a part that fails its check in one of them is off in all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.processes.group import ProcessGroup
from lora_chat.training.fast_path.check_windows import PackedLengths
from lora_chat.training.fast_path.select import FastPath, find_fast_path

if TYPE_CHECKING:
    from peft import PeftModel


def find_common_fast_path(
    model: "PeftModel", ids: Sequence[int], longest_ids: Sequence[int], lengths: PackedLengths, group: ProcessGroup
) -> FastPath:
    """Check the fast path in each process, and return the parts that pass in all; see `find_fast_path`."""
    stock_attention = model.config._attn_implementation
    own = find_fast_path(model, ids, longest_ids, lengths)
    common = agree_on_parts(own, group)
    if own.packed_collator and not common.packed_collator:
        model.set_attn_implementation(stock_attention)  # padded rows need its mask
    return common


def agree_on_parts(own: FastPath, group: ProcessGroup) -> FastPath:
    """Return a fast path without the parts that another process lacks, such as one whose card has less memory."""
    if group.size == 1:
        return own
    parts, notes = group.gather_json(_list_parts(own)), group.gather_json(list(own.notes))
    packs, shares_prefix, has_head, fused = (all(column) for column in zip(*parts, strict=True))
    return FastPath(
        packed_collator=replace(own.packed_collator, share_prefix=shares_prefix)
        if packs and own.packed_collator
        else None,
        head=own.head if has_head else None,
        fused=fused,
        notes=_merge_notes(notes),
    )


def _list_parts(path: FastPath) -> list[bool]:
    """Return which parts a fast path has."""
    collator = path.packed_collator
    return [collator is not None, collator is not None and collator.share_prefix, path.head is not None, path.fused]


def _merge_notes(notes: Sequence[list[str]]) -> tuple[str, ...]:
    """Return the notes of all processes, with the number of the process if they differ."""
    if all(own == notes[0] for own in notes):
        return tuple(notes[0])
    return tuple(
        f"Process {number} of {len(notes)}: {note}" for number, own in enumerate(notes, start=1) for note in own
    )

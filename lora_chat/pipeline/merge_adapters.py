"""Merge the adapters of one or several runs, parcels or folders into a 16-bit model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_chat.errors import RecipeError
from lora_chat.export.merge import Mixture, merge
from lora_chat.export.parity.default_prompts import imagine_probes
from lora_chat.export.parity.format import proof_line
from lora_chat.export.parity.samples import Probe, make_probes
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.held_out import Own, find_held_out
from lora_chat.pipeline.open_adapter import Opened, Trust, open_things
from lora_chat.system.console import say, shown


def merge_things(
    things: Sequence[str],
    weights: Sequence[float] | None,
    to: Path,
    own: Own,
    trust: Trust,
    *,
    original: bool,
    accept: bool,
) -> dict[str, Any]:
    """Merge the adapters of one or several runs or parcels and prove the result on the first one's dialogues."""
    mixture, probes, _ = open_mixture(things, weights, own, trust)
    report = merge(mixture, probes(), to, say, original=original, accept=accept)
    say(f"Merged into {shown(to.absolute())}. {proof_line(report)}")
    return {"merged": str(to.absolute()), "proof": report.as_dict()}


def open_mixture(
    things: Sequence[str], weights: Sequence[float] | None, own: Own, trust: Trust
) -> tuple[Mixture, Callable[[], list[Probe]], Opened]:
    """The adapters of some runs or parcels, what makes the probes of their proof, and the first one."""
    if weights is not None and len(weights) != len(things):
        raise RecipeError(f"--weights has {len(weights)} numbers for {len(things)} adapters; give one for each.")
    opened = open_things(things, say, trust)
    first = opened[0]
    mixture = Mixture(
        adapters=tuple(zip([one.found for one in opened], weights or [1.0] * len(opened), strict=True)),
        precision=first.precision,
        stop_ids=tuple(read_stop_ids(first.found.base, first.found.tokenizer)),
    )
    held_out = find_held_out(first, own) if first.run or own.data else None

    def probes() -> list[Probe]:
        if held_out is not None:
            return make_probes(held_out.validation)
        say("No held-out dialogues at hand (--data FILE): asking the adapted model a few questions for the proof")
        return imagine_probes(mixture, first.system)

    return mixture, probes, first

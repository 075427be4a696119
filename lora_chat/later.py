"""What can be done with a finished run, a parcel or an adapter: measure it again, merge it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.console import shown
from lora_chat.delivery.imagined import imagine_probes
from lora_chat.delivery.merge import Mixture, merge
from lora_chat.delivery.probes import Probe, make_probes
from lora_chat.delivery.proof_text import proof_line
from lora_chat.errors import RecipeError
from lora_chat.measuring import compare_run, headline, measure
from lora_chat.models.adapter_folder import is_adapter
from lora_chat.models.stop_ids import read_stop_ids
from lora_chat.opening import Opened, Trust, open_thing, open_things
from lora_chat.planning.recipe import EvaluationSection
from lora_chat.preparation import Prepared, prepare_held_out, prepare_own
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.console import say
from lora_chat.system.user_path import user_path


@dataclass(frozen=True)
class Own:
    """Dialogues and questions of one's own to measure with."""

    data: str | None = None
    questions: str | None = None


def evaluate_thing(thing: str, own: Own, trust: Trust) -> dict[str, Any]:
    """Compare base and adapted once more: a run on what it held out, anything on files of one's own."""
    if own.data is None and (is_parcel(user_path(thing)) or is_adapter(user_path(thing))):
        raise RecipeError(f"{thing} brings no dialogues to measure with: name some with --data FILE.")
    if own.questions is not None and own.data is None:
        raise RecipeError("--questions belongs to --data: what a run held out has its own questions.")
    opened = open_thing(thing, say, trust)
    prepared = find_held_out(opened, own)
    model: Any = opened.found.load(opened.precision)
    if opened.run is not None and own.data is None:
        report = compare_run(model, prepared, opened.run.read_plan().evaluation, opened.run)
    else:
        report = measure(model, prepared, EvaluationSection())
    return {"run" if opened.run else "adapter": str(opened.run.path if opened.run else thing), **headline(report)}


def find_held_out(opened: Opened, own: Own) -> Prepared:
    """A run's held-out dialogues, or those of one's own. Raises DataError for what is wrong with them."""
    if opened.run is not None and own.data is None:
        return prepare_held_out(opened.found, opened.run.read_plan(), opened.run, say)
    return prepare_own(opened.found, [own.data] if own.data else [], own.questions, say)


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

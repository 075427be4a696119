"""The bases that fit the data and the device, each with the figures of its plan, and the default among them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import BaseSection, Recipe
from lora_chat.data.lengths import DataLengths
from lora_chat.data.row_lengths import RowLengths
from lora_chat.errors import RecipeError
from lora_chat.models.base_config import BaseConfig, find_planned_base
from lora_chat.models.shape import ModelShape
from lora_chat.pipeline.base_precision import adopt_planned_base
from lora_chat.pipeline.estimate import estimate_plan, read_lengths
from lora_chat.pipeline.model_shape import count_selected_parameters, find_shape
from lora_chat.pipeline.new.base_proposals import BASE_PROPOSALS, BaseProposal, find_proposal
from lora_chat.pipeline.new.token_lengths import LengthLimit
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.settings_search import PlanningProblem
from lora_chat.planning.validation import resolve_validation
from lora_chat.system.hardware import Hardware

_MODES = ("none", "4bit")
"""Precisions in the order in which they are tried: 16 bits are faster, and merge into the original weights."""
_MAX_SECONDS = {"cuda": 8 * 3600.0, "cpu": 1800.0}
"""Longest time of a run that is proposed as the default, on each device."""


@dataclass(frozen=True)
class PlanningTask:
    """The data, the device and the recipe that all bases share."""

    recipe: Recipe
    """Recipe with every setting but base, precision, learning rate and a shorter length limit."""
    target: TargetDevice
    hardware: Hardware
    limits: Sequence[LengthLimit]
    """Length limits, the longest first."""
    languages: Sequence[str]
    mode: str | None = None
    """Precision that the user sets; None for the first that fits."""


@dataclass(frozen=True)
class BaseCandidate:
    """A base with its plan, and the reasons against it."""

    name: str
    weights: int
    mode: str
    limit: LengthLimit
    estimate: RunEstimate | None
    """Estimate; None if no plan is possible."""
    missing: tuple[str, ...] = ()
    """Languages that the base has read little of."""
    license: str | None = None
    problem: str = ""
    """Reason why no plan is possible."""

    @property
    def fits(self) -> bool:
        """Return whether the run fits the device."""
        return self.estimate is not None and self.estimate.verdict != "does not fit"

    @property
    def seconds(self) -> float | None:
        """Return the likely seconds of the run; None if they are unknown."""
        total = self.estimate.total_time if self.estimate is not None else None
        return total.likely if total is not None else None

    @property
    def is_quick(self) -> bool:
        """Return whether the run takes no longer than a default should."""
        if self.estimate is None or self.seconds is None:
            return self.estimate is not None
        return self.seconds <= _MAX_SECONDS[self.estimate.target.device]

    def list_reasons(self) -> list[str]:
        """Return the reasons against this base."""
        reasons = [self.problem] if self.problem else []
        if self.estimate is not None and self.estimate.verdict != "fits":
            reasons.append(self.estimate.verdict)
        if self.missing:
            reasons.append(f"has read little {' and '.join(self.missing)}")
        if self.limit.num_above and self.fits:
            reasons.append(f"{self.limit.num_above:,} rows are too long and left out")
        if self.fits and not self.is_quick:
            reasons.append("takes long")
        return reasons

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON, in bytes and seconds."""
        estimate = self.estimate
        return {
            "base": self.name,
            "parameters": self.weights,
            "quantization": self.mode,
            "max_length": self.limit.tokens,
            "rows_above": self.limit.num_above,
            "verdict": estimate.verdict if estimate is not None else None,
            "peak_bytes": estimate.peak if estimate is not None else None,
            "free_bytes": estimate.target.free if estimate is not None else None,
            "seconds": self.seconds,
            "download_bytes": estimate.download_bytes if estimate is not None else None,
            "license": self.license,
            "missing_languages": list(self.missing),
            "reasons_against": self.list_reasons(),
        }


class BasePlanner:
    """Plans bases for one task. Lengths are read once for each tokenizer."""

    def __init__(self, task: PlanningTask) -> None:
        self._task = task
        self._lengths: dict[str | None, DataLengths] = {}

    def plan(self, proposal: BaseProposal | None, name: str) -> BaseCandidate:
        """Return the first of the precisions and lengths that fits, or the smallest one that does not."""
        task = self._task
        base = find_planned_base(BaseSection(name=name))
        candidate: BaseCandidate | None = None
        modes = _MODES if task.mode is None else (task.mode,)
        for limit, mode in ((limit, mode) for limit in task.limits for mode in modes):
            candidate = self._estimate(base, mode, limit)
            if candidate.estimate is None or candidate.estimate.verdict == "fits":
                break
        assert candidate is not None
        if proposal is None:
            return candidate
        missing = tuple(proposal.list_missing(task.languages))
        return replace(candidate, missing=missing, license=proposal.license)

    def _estimate(self, base: BaseConfig, mode: str, limit: LengthLimit) -> BaseCandidate:
        """Return a base in a precision, with all rows up to a limit."""
        quantization = self._task.recipe.quantization.model_copy(update={"mode": mode})
        section = self._task.recipe.base.model_copy(update={"name": base.name})
        recipe = self._task.recipe.model_copy(update={"base": section, "quantization": quantization})
        try:
            estimate = self.estimate_recipe(recipe, base, limit)
        except RecipeError as error:
            return BaseCandidate(base.name, 0, mode, limit, None, problem=str(error).splitlines()[0])
        return BaseCandidate(base.name, estimate.parameters, estimate.plan.precision.mode, limit, estimate)

    def estimate_recipe(self, recipe: Recipe, base: BaseConfig, limit: LengthLimit | None = None) -> RunEstimate:
        """Return the estimate of a recipe for the device. With a limit, rows above it are left out of the lengths.

        Only an earlier benchmark of this machine is used, so times are rough. Raises RecipeError.
        """
        hardware = self._task.hardware
        plan = adopt_planned_base(make_plan(recipe, hardware), base, hardware)
        shape = find_shape(plan, base)
        trained = count_selected_parameters(plan, base, shape)
        lengths = read_lengths(plan, base, shape) if limit is None else self._read_lengths(plan, base, shape)
        if limit is not None:
            lengths = _select_rows(lengths, limit)
        plan = resolve_validation(plan, lengths.train, lengths.validation)
        problem = PlanningProblem(shape, lengths, self._task.target, trained)
        return estimate_plan(plan, problem, base, 0.0, allow_slow=False, suggest=limit is None, cached_benchmark=True)

    def _read_lengths(self, plan: Plan, base: BaseConfig, shape: ModelShape) -> DataLengths:
        """Return the lengths of the data in tokens of the base, or of the embedded tokenizer for all other bases."""
        key = str(base.folder) if base.folder is not None else None
        if key not in self._lengths:
            self._lengths[key] = read_lengths(plan, base, shape)
        return self._lengths[key]


def list_candidates(planner: BasePlanner, only: str | None = None) -> Iterator[BaseCandidate]:
    """Yield the plan of each proposed base by size, or of the only one that the user wants.

    After two bases that do not fit, larger ones are left out.
    """
    if only is not None:
        yield planner.plan(find_proposal(only), only)
        return
    num_refused = 0
    for proposal in BASE_PROPOSALS:
        candidate = planner.plan(proposal, proposal.name)
        yield candidate
        num_refused += not candidate.fits
        if num_refused == 2:
            return


def choose_default(candidates: Sequence[BaseCandidate], is_available: Callable[[str], bool]) -> BaseCandidate:
    """Return the largest base that fits, reads the languages, is available and does not take long.

    Without one, these wishes are given up from the last to the first.
    """
    wishes: list[Callable[[BaseCandidate], bool]] = [
        lambda candidate: candidate.fits,
        lambda candidate: is_available(candidate.name),
        lambda candidate: not candidate.missing,
        lambda candidate: candidate.estimate is not None and candidate.estimate.verdict == "fits",
        lambda candidate: not candidate.limit.num_above,
        lambda candidate: candidate.is_quick,
    ]
    for count in range(len(wishes), 0, -1):
        chosen = [candidate for candidate in candidates if all(wish(candidate) for wish in wishes[:count])]
        if chosen:
            # Of bases that take long, the smallest takes the least.
            return chosen[-1] if count == len(wishes) else chosen[0]
    return candidates[0]


def _select_rows(lengths: DataLengths, limit: LengthLimit) -> DataLengths:
    """Return the lengths without the rows above a limit."""

    def select(rows: RowLengths) -> RowLengths:
        is_inside = rows.tokens <= limit.tokens
        return rows if is_inside.all() else rows.select(is_inside)

    test = select(lengths.test) if lengths.test is not None else None
    return replace(lengths, train=select(lengths.train), validation=select(lengths.validation), test=test)

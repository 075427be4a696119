"""The number of general items that both models are asked, bounded by planned time, and the seconds that they take."""

import math

from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS, GENERAL_TIME_SHARE
from lora_chat.inference.generation import generation_batch_size
from lora_chat.planning.calibration import MachineBenchmark
from lora_chat.planning.phase_time import PhaseDurations, TimeEstimate, token_seconds
from lora_chat.planning.settings_search import Candidate

_TIME_RATIOS = 0.3, 1.35
"""Range of actual / planned time of general replies: a batch may end early, and the machine has other load."""


def add_general_items(
    durations: PhaseDurations | None, candidate: Candidate, benchmark: MachineBenchmark | None
) -> tuple[PhaseDurations | None, int]:
    """Return the durations with the time of general replies, and the number of general items.

    The smallest number is always asked. A larger one takes at most GENERAL_TIME_SHARE of the training.
    """
    counts = candidate.problem.data.general_counts
    if not counts or durations is None:
        return durations, min(counts, default=0)
    batch_seconds = _estimate_batch_seconds(candidate, benchmark)
    limit = GENERAL_TIME_SHARE * durations["train"].likely
    fitting = [count for count in counts if _total_seconds(count, candidate, batch_seconds) <= limit]
    count = max([min(counts), *fitting])
    return add_general_time(durations, candidate, benchmark, count), count


def add_general_time(
    durations: PhaseDurations, candidate: Candidate, benchmark: MachineBenchmark | None, count: int
) -> PhaseDurations:
    """Return the durations with the time of the replies to this number of general items."""
    if not count:
        return durations
    seconds = _total_seconds(count, candidate, _estimate_batch_seconds(candidate, benchmark))
    low, high = (ratio * seconds for ratio in _TIME_RATIOS)
    return durations | {"generate": durations["generate"] + TimeEstimate(seconds, low, high)}


def _estimate_batch_seconds(candidate: Candidate, benchmark: MachineBenchmark | None) -> float:
    """Return the seconds of a batch of replies: measured, or from the speed of the device; 0 if it is unknown."""
    shape, speed = candidate.problem.shape, candidate.problem.target.speed
    if benchmark and any("general" in measured for measured in benchmark.measurements):
        return benchmark.extrapolate("general", shape.num_layers)
    if benchmark:  # other prompts of the same batch size were timed; a prefill is proportional to its tokens
        data = candidate.problem.data
        share = max(data.general_prompt_tokens) / max(data.prompt_tokens, default=1)
        prefill, decode = (benchmark.extrapolate(name, shape.num_layers) for name in ("prefill", "said"))
        return share * prefill + (GENERAL_MAX_NEW_TOKENS - 1) * decode
    if speed is None:
        return 0.0
    likely_share = math.sqrt(speed.low * speed.high)
    return GENERAL_MAX_NEW_TOKENS * token_seconds(shape, candidate.memory_config, speed) / likely_share


def _total_seconds(count: int, candidate: Candidate, batch_seconds: float) -> float:
    """Return the seconds of the replies of both models to a number of general items."""
    problem = candidate.problem
    longest = max(problem.data.general_prompt_tokens) + GENERAL_MAX_NEW_TOKENS
    batch_size = generation_batch_size(problem.shape, longest, candidate.memory_config.bytes_per_value)
    return 2 * batch_seconds * -(-count // batch_size)

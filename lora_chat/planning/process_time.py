"""Seconds that several processes of a run spend on communication."""

from dataclasses import dataclass

from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.generation import generation_batch_size
from lora_chat.planning.phase_time import PhaseDurations, TimeEstimate
from lora_chat.planning.process_layout import TRAINING_PASSES, gather_seconds
from lora_chat.planning.settings_search import Candidate
from lora_chat.planning.weight_memory import count_adapter_parameters

GRADIENT_BYTES = 4
"""Bytes of the gradient of a trained weight, which is summed in fp32."""
_COUNT_BYTES = 8
"""Bytes of the step's number of supervised tokens."""


@dataclass(frozen=True)
class Communication:
    """Seconds that processes wait for each other's data."""

    gradient_bytes: int
    """Bytes that each process adds to the sum of a step."""
    step: float
    """Seconds of a step for its gradients and its count of supervised tokens."""
    gather: float
    """Seconds of a step in which a sharded base is gathered."""


def estimate_communication(candidate: Candidate) -> Communication:
    """Return the communication of one optimizer step; nothing of one process."""
    problem = candidate.problem
    layout = problem.layout
    size = GRADIENT_BYTES * count_adapter_parameters(problem.shape, candidate.memory_config)
    seconds = [layout.link.all_reduce_seconds(each, layout.count) for each in (size, _COUNT_BYTES)]
    gathers = TRAINING_PASSES * candidate.own_workload.micro_batches
    gather = gather_seconds(problem.shape, candidate.memory_config, layout)
    return Communication(size, sum(seconds), gathers * gather)


def add_communication(
    durations: PhaseDurations, candidate: Candidate, data: DataLengths, general_items: int, measurements: int
) -> PhaseDurations:
    """Return the seconds of the phases of one process with the seconds in which it waits for data of the others.

    `data` are its own rows and prompts. Computation and communication are not assumed to overlap.
    """
    problem = candidate.problem
    workload, config, layout = candidate.own_workload, candidate.memory_config, problem.layout
    communication = estimate_communication(candidate)
    seconds = {"train": workload.steps * (communication.step + communication.gather)}
    forward = gather_seconds(problem.shape, config, layout)
    if forward:
        tokens = int(data.validation.tokens.sum())
        seconds["validate"] = measurements * forward * max(1, -(-tokens // workload.largest.tokens))
        seconds["evaluate"] = 2 * forward * len(data.evaluated_tokens)
        # Each token of a batch of replies is one pass.
        passes = _count_batches(candidate, data.prompt_tokens, data.max_reply_tokens) * data.max_reply_tokens
        general = data.general_prompt_tokens[:general_items]
        passes += _count_batches(candidate, general, GENERAL_MAX_NEW_TOKENS) * GENERAL_MAX_NEW_TOKENS
        seconds["generate"] = 2 * forward * passes
    slowest = layout.link.slowest
    return {name: duration + _with_range(seconds.get(name, 0.0), slowest) for name, duration in durations.items()}


def _count_batches(candidate: Candidate, prompts: tuple[int, ...], max_reply_tokens: int) -> int:
    """Return the number of batches in which prompts are answered."""
    if not prompts:
        return 0
    size = candidate.memory_config.bytes_per_value
    return -(-len(prompts) // generation_batch_size(candidate.problem.shape, max(prompts) + max_reply_tokens, size))


def _with_range(seconds: float, slowest: float) -> TimeEstimate:
    """Return seconds of communication with their range."""
    return TimeEstimate(seconds, seconds, slowest * seconds)

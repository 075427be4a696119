"""Which dialogues are held out, and which part of a source is seen: decided by what they say and a seed.

Neither the order of a file nor what else stands in it changes which side a dialogue is on.
"""

from typing import TYPE_CHECKING, Any

from lora_chat.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]


def choose_held_out(digests: "Numbers", share: float, seed: int, max_held_out: int | None = None) -> "Numbers":
    """(units,) bool: about `share` of the units, those that say the same on one side.

    Raises DataError if nothing would be left to train on.
    """
    import numpy as np

    unique_digests, group_of_unit, counts = np.unique(digests, return_inverse=True, return_counts=True)
    if len(unique_digests) < 2:
        raise DataError(
            "At least 2 different dialogues are needed, or 2 blocks of plain text: one to train on and one to measure "
            "with. Name data.validation; plain text gives more blocks with a smaller data.max_length."
        )
    wanted = max(1, min(round(len(digests) * share), max_held_out or len(digests)))
    order = np.argsort(_random_keys(unique_digests, seed), kind="stable")
    chosen = np.zeros(len(unique_digests), bool)
    held_count = 0
    for group in order[:-1].tolist():
        if held_count + counts[group] <= wanted:
            chosen[group] = True
            held_count += int(counts[group])
            if held_count == wanted:
                break
    if not held_count:  # every group is larger than the share; the smallest comes nearest
        chosen[order[np.argmin(counts[order])]] = True
    result: Numbers = chosen[group_of_unit]
    return result


def repeat_by_weight(units: "Numbers", digests: "Numbers", weight: float, seed: int) -> "Numbers":
    """The numbers of units as often as each is seen in an epoch; `digests` are theirs."""
    import numpy as np

    whole, part = int(weight), weight - int(weight)
    some = round(len(units) * part) or int(len(units) > 0 and not whole)  # no source vanishes
    order = np.argsort(_random_keys(digests, seed + 1), kind="stable")
    result: Numbers = np.concatenate([*[units] * whole, np.sort(units[order[:some]])])
    return result


def _random_keys(digests: "Numbers", seed: int) -> "Numbers":
    """Numbers as random as a hash, from digests and a seed (SplitMix64, Steele et al. 2014)."""
    import numpy as np

    with np.errstate(over="ignore"):
        hashed = digests.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return hashed ^ (hashed >> np.uint64(31))

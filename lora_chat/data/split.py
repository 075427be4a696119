"""Choose held-out dialogues, and repeat or sample a source by its weight.

The choice depends on the content of a dialogue and a seed, so that the order of a file and its other dialogues do not
change it.
"""

from typing import TYPE_CHECKING, Any

from lora_chat.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

_TEST_SEED = 0x7E57
"""Number added to the seed for the choice of test dialogues."""
_MIN_CANDIDATES, _LIST_LENGTH = 1000, 1 << 16
"""Smallest number of units that are sorted for a choice, and numbers that are converted to Python at a time."""


def choose_held_out(digests: "Numbers", share: float, seed: int, max_held_out: int | None = None) -> "Numbers":
    """Return which units are held out, (units,) bool: about `share` of them, and all or none of equal ones.

    Raises DataError if no unit would be left for training.
    """
    if _has_few_groups(digests):
        raise DataError(
            "At least 2 different dialogues or 2 blocks of plain text are needed, one for training and one for "
            "validation. Fix: name data.validation, train on all with --set data.validation_share=0, or get more "
            "blocks of plain text with a smaller data.max_length."
        )
    return _choose_groups(digests, _count_wanted(len(digests), share, max_held_out), seed)


def choose_test(
    digests: "Numbers", is_validation: "Numbers", share: float, seed: int, max_test: int | None = None
) -> "Numbers":
    """Return which units are the test set, (units,) bool: about `share` of all, none of them in the validation set.

    The validation set is the same as without a test set. Raises DataError if no unit would be left for training.
    """
    import numpy as np

    rest = np.flatnonzero(~is_validation)
    if _has_few_groups(digests[rest]):
        raise DataError(
            "Too few different dialogues or blocks of plain text are left for a test set beside training and "
            "validation. Fix: name data.test, or do without a test set with --set data.test_share=0."
        )
    result: Numbers = np.zeros(len(digests), bool)
    wanted = _count_wanted(len(digests), share, max_test)
    result[rest] = _choose_groups(digests[rest], wanted, seed + _TEST_SEED)
    return result


def _count_wanted(units: int, share: float, limit: int | None) -> int:
    """Return the number of units that a share of all units is, at least 1."""
    return max(1, min(round(units * share), limit or units))


def _has_few_groups(digests: "Numbers") -> bool:
    """Return whether there are fewer than two different units."""
    return len(digests) == 0 or bool((digests == digests[0]).all())


def _choose_groups(digests: "Numbers", wanted: int, seed: int) -> "Numbers":
    """Return which units are chosen, (units,) bool: about `wanted`, all or none of equal ones, and never all groups."""
    import numpy as np

    keys = _random_keys(digests, seed)  # different digests have different keys
    result: Numbers = np.zeros(len(keys), bool)
    count = 2 * wanted + _MIN_CANDIDATES
    while True:
        # Only the units with the smallest keys are sorted, because few of millions are held out.
        limit = np.partition(keys, count)[count] if count < len(keys) else keys.max()
        units = np.flatnonzero(keys <= limit)
        is_whole = len(units) == len(keys)
        _, group_of_unit, counts = np.unique(keys[units], return_inverse=True, return_counts=True)
        chosen, held_out_count = _take_groups(counts[:-1] if is_whole else counts, wanted)
        if is_whole or held_out_count == wanted:
            break
        count *= 8
    if not held_out_count:  # every group is larger than the share, so the smallest is the closest
        chosen = np.arange(len(counts)) == np.argmin(counts)
    result[units[np.append(chosen, False)[group_of_unit]]] = True
    return result


def _take_groups(counts: "Numbers", wanted: int) -> tuple["Numbers", int]:
    """Return which groups are taken in their order, each one that does not exceed the number, and their units."""
    import numpy as np

    chosen, taken = np.zeros(len(counts), bool), 0
    for begin in range(0, len(counts), _LIST_LENGTH):
        for group, count in enumerate(counts[begin : begin + _LIST_LENGTH].tolist(), begin):
            if taken + count <= wanted:
                chosen[group] = True
                taken += count
                if taken == wanted:
                    return chosen, taken
    return chosen, taken


def repeat_by_weight(units: "Numbers", digests: "Numbers", weight: float, seed: int) -> "Numbers":
    """Return the numbers of units, each repeated as in an epoch; `digests` belong to the units."""
    import numpy as np

    repeats, fraction = int(weight), weight - int(weight)
    if repeats == 1 and not fraction:
        return units
    sample_size = round(len(units) * fraction) or int(len(units) > 0 and not repeats)  # at least one unit of a source
    order = np.argsort(_random_keys(digests, seed + 1), kind="stable")
    result: Numbers = np.concatenate([*[units] * repeats, np.sort(units[order[:sample_size]])])
    return result


def _random_keys(digests: "Numbers", seed: int) -> "Numbers":
    """Return pseudorandom numbers from digests and a seed (SplitMix64, Steele et al. 2014)."""
    import numpy as np

    with np.errstate(over="ignore"):
        hashed = digests.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return hashed ^ (hashed >> np.uint64(31))

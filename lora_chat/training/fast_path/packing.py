"""Distribution of dialogues over micro-batches by tokens."""

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Distribute rows over the fewest micro-batches within both limits, of similar size.

    A row longer than the budget gets a micro-batch for itself. The rows of a micro-batch keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = max(1, -(-sum(lengths) // max_tokens), -(-len(lengths) // max_rows))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            # The longest row that is left goes to the smallest micro-batch with room for a row.
            smallest = min(range(count), key=lambda b: (len(batches[b]) >= max_rows, sizes[b], b))
            batches[smallest].append(i)
            sizes[smallest] += lengths[i]
        fits = all(size <= max_tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        if fits or count >= len(lengths):
            return [sorted(batch) for batch in batches if batch]
        count += 1

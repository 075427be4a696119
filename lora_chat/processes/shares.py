"""Division of dialogues among processes, so that each has about the same number of tokens."""

from collections.abc import Sequence


def share_by_size(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide numbers from 0 to len(sizes) - 1 into `count` lists of about the same total size, each in order.

    The largest that is left goes to the smallest share (Graham, Bounds on multiprocessing timing anomalies, SIAM
    Journal on Applied Mathematics 17, 1969), so that the largest share has at most 4/3 of the best one's size. With
    fewer numbers than shares, some shares are empty. The result depends on nothing else.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        smallest = min(range(count), key=lambda share: (totals[share], len(shares[share]), share))
        shares[smallest].append(number)
        totals[smallest] += sizes[number]
    return [sorted(share) for share in shares]

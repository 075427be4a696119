"""Matrix products that keep every core busy."""

import torch

_MOST_ROWS = 512
_MOST_ROWS_LONG = 352
"""For sums over more than _LONG."""
_LONG = 1536
_ENOUGH_ROWS = 1300
_WIDE = 1024


def product(x: torch.Tensor, weight: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """`plus` + x @ weight: x (rows, in), weight (in, out) -> (rows, out).

    oneDNN gives a product of some 500 to 1,300 rows and a narrow result to one thread alone (v3.12, two threads:
    320 instead of 600 GFLOP/s; benchmarks/LOG.md), so on the CPU such rows go in equal pieces.
    """
    rows, width = x.shape[0], weight.shape[1]
    most = _MOST_ROWS if x.shape[1] <= _LONG else _MOST_ROWS_LONG
    if x.device.type != "cpu" or not most < rows <= _ENOUGH_ROWS or width > _WIDE:
        return torch.mm(x, weight) if plus is None else torch.addmm(plus, x, weight)
    result = x.new_empty(rows, width)
    piece = -(-rows // -(-rows // most))
    for i in range(0, rows, piece):
        if plus is None:
            torch.mm(x[i : i + piece], weight, out=result[i : i + piece])
        else:
            torch.addmm(plus[i : i + piece], x[i : i + piece], weight, out=result[i : i + piece])
    return result

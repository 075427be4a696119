"""Matrix products that keep both cores busy."""

import torch


def balanced_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (rows, in) @ weight (in, out) -> (rows, out)."""
    rows, inner, width = x.shape[0], x.shape[1], weight.shape[1]
    pieces = _count_column_groups(rows, inner, width) if x.device.type == "cpu" and torch.get_num_threads() == 2 else 1
    if pieces == 1:
        return torch.mm(x, weight)
    result = x.new_empty(rows, width)
    piece = -(-width // pieces)
    for i in range(0, width, piece):
        columns = slice(i, i + piece)
        torch.mm(x, weight[:, columns], out=result[:, columns])
    return result


def _count_column_groups(rows: int, inner: int, width: int) -> int:
    """Into how many groups of columns a bf16 product goes, so that oneDNN 3.12 shares each of two threads.

    Between these borders it gives the whole to one of two threads, at half the speed (benchmarks/LOG.md); with
    other numbers of threads it was not measured.
    """
    if width <= 640:
        begin, end = (352, 1344) if inner > 2048 else (512, 1344) if inner > 1024 else (576, 1152)
        few = 3 if rows < 768 or inner > 2048 else 2
        return few if begin <= rows < end and width >= 256 else 1
    if width <= 1024:
        return 2 if 1024 <= rows < 1450 else 1
    return 3 if width > 2048 and 512 <= rows < 768 else 1

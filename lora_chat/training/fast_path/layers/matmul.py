"""Matrix products that use both CPU threads."""

import torch


def balanced_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply x (rows, in) by weight (in, out) to (rows, out), in groups of columns if that is faster."""
    rows, in_features, out_features = x.shape[0], x.shape[1], weight.shape[1]
    on_two_threads = x.device.type == "cpu" and torch.get_num_threads() == 2
    groups = _count_column_groups(rows, in_features, out_features) if on_two_threads else 1
    if groups == 1:
        return torch.mm(x, weight)
    result = x.new_empty(rows, out_features)
    width = -(-out_features // groups)
    for start in range(0, out_features, width):
        columns = slice(start, start + width)
        torch.mm(x, weight[:, columns], out=result[:, columns])
    return result


def _count_column_groups(rows: int, in_features: int, out_features: int) -> int:
    """Return the number of column groups with which oneDNN 3.12 splits a bf16 product between two threads.

    Between the limits below, oneDNN gives the whole product to one of two threads, at half the speed
    (benchmarks/LOG.md). Other numbers of threads were not measured.
    """
    if out_features <= 640:
        begin, end = (352, 1344) if in_features > 2048 else (512, 1344) if in_features > 1024 else (576, 1152)
        few = 3 if rows < 768 or in_features > 2048 else 2
        return few if begin <= rows < end and out_features >= 256 else 1
    if out_features <= 1024:
        return 2 if 1024 <= rows < 1450 else 1
    return 3 if out_features > 2048 and 512 <= rows < 768 else 1

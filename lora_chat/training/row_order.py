"""The random order of rows in an epoch, without a Python list of all of them."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader

_LIST_LENGTH = 1 << 16


class ListlessSampler(SeedableRandomSampler):  # type: ignore[misc, unused-ignore]
    """Accelerate's sampler with the same order; millions of rows are not converted to Python numbers together."""

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of an epoch."""
        generator = torch.Generator(device=torch.get_default_device())
        generator.manual_seed(self.epoch + self.initial_seed)
        order = torch.randperm(len(self.data_source), generator=generator)
        for begin in range(0, len(order), _LIST_LENGTH):
            yield from order[begin : begin + _LIST_LENGTH].tolist()
        self.set_epoch(self.epoch + 1)


def replace_row_list(loader: DataLoader) -> None:  # type: ignore[type-arg]
    """Let a loader of training rows draw its order from `ListlessSampler`, if it has accelerate's sampler."""
    batches: Any = loader.batch_sampler
    sampler: Any = getattr(batches, "sampler", None)
    if type(sampler) is not SeedableRandomSampler or sampler.replacement or sampler._num_samples is not None:
        return
    replaced = ListlessSampler(sampler.data_source, generator=sampler.generator, data_seed=sampler.initial_seed)
    replaced.set_epoch(sampler.epoch)
    batches.sampler = replaced

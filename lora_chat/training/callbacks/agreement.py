"""Callback that lets all processes decide alike after a step, and compares their adapters."""

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import IntegrityError
from lora_chat.processes.group import ProcessGroup
from lora_chat.training.adapter_dtype import compare_adapters
from lora_chat.training.stop_request import StopRequest

if TYPE_CHECKING:
    from lora_chat.training.trainer import PackedSFTTrainer


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


class StepAgreement(TrainerCallback):
    """One exchange after each step: requests to stop, and checksums of the step's dialogues and of the adapter.

    It comes before the other callbacks. A group of one process exchanges nothing.
    """

    def __init__(self, trainer: "PackedSFTTrainer", group: ProcessGroup, stop_request: StopRequest) -> None:
        self._trainer = trainer
        self._group = group
        self._stop_request = stop_request
        self._randomness = trainer.randomness_checksum
        self.is_checkpoint_due: Callable[[], bool] = lambda: False
        """Function of the first process that says whether a checkpoint is due by the clock."""
        self.checkpoint_due = False
        """Whether it was due after the last step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise IntegrityError unless all processes begin with the same adapter."""
        self._stop_request.agree(self._group)
        self.compare_adapters(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise IntegrityError if the processes trained other dialogues or have other adapters."""
        due = self.is_checkpoint_due() if self._group.is_first else False
        if self._group.size == 1:
            self.checkpoint_due = due
            return
        values = [self._sum_rows(), self._randomness, self._sum_bits(), self._stop_request.received, due]
        rows = self._group.exchange(values)
        for column, what in enumerate(("dialogues", "random numbers", "adapters")):
            if len({row[column] for row in rows}) > 1:
                raise IntegrityError(
                    f"The processes have different {what} after step {state.global_step}; it was not saved. "
                    "Fix: use the same packages and kind of device for all processes, then continue with --resume."
                )
        self._stop_request.agreed = int(max(row[3] for row in rows))
        self.checkpoint_due = bool(rows[0][4])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Raise IntegrityError before the checkpoint is committed if an adapter differs from the others."""
        self.compare_adapters(state.global_step)

    def compare_adapters(self, step: int) -> None:
        """Raise IntegrityError unless all processes have the same adapter."""
        compare_adapters(self._trainer.model, self._group, f"adapters after step {step}")

    def _sum_rows(self) -> int:
        """Return a checksum of the step's token ids, of the lengths of its dialogues and of the trained positions."""
        batch = self._trainer.step_batch
        checksum = 0
        for values in (batch["row_ids"], batch["row_lengths"], batch["row_labels"]):
            checksum = zlib.crc32(values.tobytes(), checksum)
        return checksum

    def _sum_bits(self) -> int:
        """Return the sum of the weights' bits as integers; only its last 50 bits, which a float can express."""
        sums = [
            parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()]).sum(dtype=torch.int64)
            for parameter in self._trained()
        ]
        return int(torch.stack(sums).sum()) & ((1 << 50) - 1)

    def _trained(self) -> list[torch.nn.Parameter]:
        """Return the trained parameters."""
        return [parameter for parameter in self._trainer.model.parameters() if parameter.requires_grad]

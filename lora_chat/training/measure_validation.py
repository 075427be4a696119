"""Measurement of the validation set during training, in micro-batches of the size of training."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_chat.models.sharded_forwards import first_process_computes
from lora_chat.processes.group import current_group
from lora_chat.processes.shares import share_by_size
from lora_chat.system.activity import note_activity
from lora_chat.training.fast_path.packed_batch import EncodedIds
from lora_chat.training.row_scores import RowScores
from lora_chat.training.stop_request import EvaluationStopped

if TYPE_CHECKING:
    from lora_chat.training.trainer import PackedSFTTrainer
    from lora_chat.training.training_run import EncodedRow


def measure_rows(
    trainer: "PackedSFTTrainer",
    rows: "Sequence[EncodedRow]",
    lengths: Sequence[int],
    max_tokens: int,
    max_rows: int,
    before_batch: Callable[[], None] = lambda: None,
) -> RowScores:
    """Return the scores of all rows. The model is in training mode again at the end, if it was.

    Each process computes a share of the micro-batches; if the base is sharded, the first one computes all of them.
    `before_batch` is called before each micro-batch and may raise EvaluationStopped, which ends the measurement in all
    processes.
    """
    group, count = current_group(), len(rows)
    losses, hits, tokens = np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    batches = list(group_rows(lengths, max_tokens, max_rows))
    stopped = False
    was_training = trainer.model.training
    trainer.model.eval()
    with first_process_computes(trainer.model) as computes:
        rank = current_group().rank
        share = share_by_size([len(batch) * lengths[batch[0]] for batch in batches], rank.size)[rank.index]
        try:
            for batch in [batches[number] for number in share if computes]:
                before_batch()
                note_activity()
                encoded: list[EncodedIds] = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels} for i in batch]
                scores = trainer.score_rows(encoded)
                row_of_token = np.asarray(batch)[scores.rows.cpu().numpy()]
                np.add.at(losses, row_of_token, scores.losses.cpu().double().numpy())
                np.add.at(hits, row_of_token, scores.hits.cpu().numpy())
                np.add.at(tokens, row_of_token, 1)
        except EvaluationStopped:
            stopped = True
        finally:
            trainer.model.train(was_training)
    if group.largest(stopped):
        raise EvaluationStopped
    sums = torch.from_numpy(np.stack([losses, hits.astype(np.float64), tokens.astype(np.float64)]))
    losses, hits, tokens = group.sum_(sums).numpy()
    hits, tokens = hits.astype(np.int64), tokens.astype(np.int64)
    return RowScores(losses, hits, tokens)


def group_rows(lengths: Sequence[int], max_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Yield the numbers of rows that are computed together, the longest first.

    Rows of similar length share a micro-batch, so that padding is short. A longer row than `max_tokens` is alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch

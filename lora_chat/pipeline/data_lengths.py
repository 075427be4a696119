"""Lengths of the rows, prompts and replies of a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.config.plan import Plan
from lora_chat.data.dataset import DialogueSet, EncodedRows
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.lengths import DataLengths, measure_rows
from lora_chat.evaluation.general.measure import render_prompts
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_lengths(
    plan: Plan,
    train: DialogueSet,
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    general: GeneralSet | None = None,
    *,
    is_estimated: bool = False,
    test: DialogueSet | None = None,
) -> DataLengths:
    """Return the lengths of training, validation and test rows, of prompts, and of the prefix that all rows share."""
    rows = measure_rows(train.rows)
    validation_lengths = measure_rows(validation.rows)
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    prompts = [
        len(
            render_ids(
                tokenizer,
                [*system_messages, {"role": "user", "content": question.question}],
                add_generation_prompt=True,
            )
        )
        for question in questions
    ]
    test_lengths = measure_rows(test.rows) if test is not None and len(test) else None
    compared = test_lengths or validation_lengths
    evaluation = plan.evaluation
    count = min(max(evaluation.samples, evaluation.reply_count), len(compared.tokens))
    prompts += (compared.tokens - compared.supervised)[:count].tolist()
    optional = max(0, count - evaluation.samples) if evaluation.replies == "auto" else 0
    return DataLengths(
        train=rows,
        validation=validation_lengths,
        prompt_tokens=tuple(max(1, length) for length in prompts),
        max_reply_tokens=plan.evaluation.max_new_tokens,
        # With dropout each dialogue has its own masks, so a micro-batch contains every prefix.
        shared_prefix=0
        if plan.adapter.dropout
        else _measure_shared_prefix(train.rows, plan.training.effective_batch_size),
        general_prompt_tokens=tuple(map(len, render_prompts(tokenizer, general.items))) if general else (),
        general_counts=general.counts if general else (),
        is_estimated=is_estimated,
        test=test_lengths,
        optional_prompts=optional,
    )


def _measure_shared_prefix(rows: EncodedRows, count: int) -> int:
    """Return the length of the prefix shared by the `count` longest rows, which form the largest micro-batch."""
    from lora_chat.training.fast_path.packed_batch import EncodedIds, PackedBatchCollator, count_shared_prefix

    longest = rows.measured.find_largest("tokens", count).tolist()
    encoded_rows: list[EncodedIds] = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels} for i in longest]
    return count_shared_prefix([PackedBatchCollator.trim(row) for row in encoded_rows])

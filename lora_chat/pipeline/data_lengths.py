"""How long everything is that a run trains, measures and answers."""

from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import Plan
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.lengths import DataLengths, measure_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_data(
    plan: Plan,
    train: Any,
    validation: Any,
    questions: Any,
    system: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    estimated: bool = False,
) -> DataLengths:
    """Lengths of training and validation rows, of prompts, and of what all begin with."""
    rows = measure_rows(train.rows)
    held = measure_rows(validation.rows)
    head = [{"role": "system", "content": system}] if system is not None else []
    prompts = [
        len(render_ids(tokenizer, [*head, {"role": "user", "content": question.question}], reply_follows=True))
        for question in questions
    ]
    count = min(plan.evaluation.samples, len(held.tokens))
    prompts += (held.tokens - held.supervised)[:count].tolist()
    return DataLengths(
        train=rows,
        validation=held,
        prompts=tuple(max(1, length) for length in prompts),
        new_tokens=plan.evaluation.max_new_tokens,
        shared_prefix=_shared_prefix(train.rows, rows.tokens, plan.training.effective_batch_size),
        estimated=estimated,
    )


def _shared_prefix(rows: Any, lengths: Any, count: int) -> int:
    """Of the longest, of which the largest micro-batch is made."""
    from lora_chat.training.fast_path.packed_batch import FlatRows, shared_prefix

    longest = (-lengths).argsort(kind="stable")[:count].tolist()
    found = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels} for i in longest]
    return shared_prefix([FlatRows.trim(row) for row in found])

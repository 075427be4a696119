"""Tasks of lm-evaluation-harness for an existing adapter and its base."""

import logging
from contextlib import nullcontext

from lora_chat.evaluation.harness_figures import format_figures, pair_figures
from lora_chat.evaluation.harness_model import check_harness, load_tasks, run_harness, without_code
from lora_chat.evaluation.harness_tasks import parse_tasks
from lora_chat.models.adapter import without_adapter
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter

logger = logging.getLogger(__name__)


def evaluate_tasks(
    source: str, tasks_text: str, trust: TrustOptions, *, limit: int | None, allow_code: bool
) -> dict[str, object]:
    """Evaluate base and adapted model on tasks of lm-evaluation-harness and show both figures.

    Raises UsageError for tasks that are unknown or could run code, and MissingPackageError without the harness.
    """
    tasks = parse_tasks(tasks_text, allow_code=allow_code)
    version = check_harness()
    opened = open_adapter(source, trust)
    with without_code(allow_code=allow_code):
        logger.info(f"Loading {len(tasks)} tasks of lm-evaluation-harness {version}; missing data sets are downloaded")
        manager, specifications = load_tasks(tasks)
        model = opened.adapter.load(opened.precision)
        results = []
        for name, as_evaluated in (("base", without_adapter(model)), ("adapted model", nullcontext())):
            logger.info(f"Evaluating the {name}")
            with as_evaluated:
                results.append(
                    run_harness(model, opened.adapter.tokenizer, manager, specifications, limit, allow_code=allow_code)
                )
    figures = pair_figures(*results)
    logger.info(f"\n{format_figures(figures)}\n\n± is the standard error that the harness estimates")
    return {
        "run" if opened.run else "adapter": str(opened.run.path if opened.run else source),
        "lm_eval": version,
        "limit": limit,
        "tasks": {task.name: task.result_fields for task in figures},
    }

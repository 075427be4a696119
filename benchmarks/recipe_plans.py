"""Print the estimates of the GPU recipes for recipes/README.md.

python benchmarks/recipe_plans.py            prints the table
python benchmarks/recipe_plans.py --write    puts it into recipes/README.md
"""

import sys
from pathlib import Path

from lora_chat.config.load import read_recipe
from lora_chat.pipeline.estimate import estimate_recipe
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_duration, format_gib, format_micro_batches

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CARDS = {
    "gpu-8gb-4bit": "RTX 3070",
    "gpu-12gb-4bit": "RTX 3060 12GB",
    "gpu-16gb-4bit": "RTX 4080",
    "gpu-24gb-none": "RTX 4090",
}
BEGIN, END = "<!-- planned: python benchmarks/recipe_plans.py --write -->", "<!-- end of planned -->"


def plan(name: str) -> RunEstimate:
    """Estimate a recipe on its card."""
    return estimate_recipe(read_recipe(RECIPES / f"{name}.yaml"), CARDS[name], None)


def make_table() -> str:
    """Return a Markdown table with a row for each recipe."""
    head = ["recipe", "card", "memory in GiB", "", "mostly", "a step", "checkpointed layers", "time", "download"]
    rows = [head, ["---"] * len(head), *(_row(name, plan(name)) for name in CARDS)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(name: str, estimate: RunEstimate) -> list[str]:
    training, total = estimate.plan.training, estimate.total_time
    assert total is not None
    assert estimate.download_bytes is not None
    checkpointed = training.gradient_checkpointing
    return [
        f"`{name}.yaml`",
        estimate.target.name,
        f"{format_gib(estimate.peak)} of {format_gib(estimate.target.free)}",
        estimate.verdict,
        estimate.worst_phase.largest_part,
        format_micro_batches(training).removeprefix("in "),
        "all" if checkpointed is True else str(int(checkpointed)),
        f"{format_duration(total.low)} to {format_duration(total.high)}",
        f"{estimate.download_bytes / 1e9:.1f} GB",
    ]


def main() -> None:
    """Print the table, or write it."""
    table = make_table()
    if "--write" not in sys.argv[1:]:
        print(table)
        return
    path = RECIPES / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()

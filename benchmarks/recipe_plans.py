"""The planned figures of the GPU recipes, for recipes/README.md.

python benchmarks/recipe_plans.py            prints the table
python benchmarks/recipe_plans.py --write    puts it into recipes/README.md
"""

import sys
from pathlib import Path

from lora_chat.config.load import read_recipe
from lora_chat.pipeline.estimate import forecast_recipe
from lora_chat.planning.estimate import Forecast
from lora_chat.planning.format import duration, gib, pieces

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CARDS = {
    "gpu-8gb-4bit": "RTX 3070",
    "gpu-12gb-8bit": "RTX 3060",
    "gpu-16gb-4bit": "RTX 4080",
    "gpu-24gb-none": "RTX 4090",
}
BEGIN, END = "<!-- planned: python benchmarks/recipe_plans.py --write -->", "<!-- end of planned -->"


def plan(name: str) -> Forecast:
    """Of a recipe on its card."""
    return forecast_recipe(read_recipe(RECIPES / f"{name}.yaml"), CARDS[name], None)


def make_table() -> str:
    """A row for each recipe."""
    head = ["recipe", "card", "memory in GiB", "", "mostly", "a step", "checkpointed layers", "time", "download"]
    rows = [head, ["---"] * len(head), *(_row(name, plan(name)) for name in CARDS)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(name: str, found: Forecast) -> list[str]:
    training, total = found.plan.training, found.total_seconds
    assert total is not None
    assert found.download is not None
    checkpointed = training.gradient_checkpointing
    return [
        f"`{name}.yaml`",
        found.target.name,
        f"{gib(found.peak)} of {gib(found.target.free)}",
        found.verdict,
        found.worst.largest_part,
        pieces(training).removeprefix("in "),
        "all" if checkpointed is True else str(int(checkpointed)),
        f"{duration(total.low)} to {duration(total.high)}",
        f"{found.download / 1e9:.1f} GB",
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

"""The command line: one function per command. Parse, call one function below, print."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_chat import __version__
from lora_chat.errors import LoraChatError, RecipeError, StoppedError
from lora_chat.stopping import raise_on_signals, signal_of

# Before any library is imported: nothing is reported home, no code comes from a hub (RELIABILITY: kernels).
_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "USE_HUB_KERNELS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_XET": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    os.environ.update(_ENVIRONMENT)
    raise_on_signals()
    if not options.verbose:
        _quiet()
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
        return 0
    except LoraChatError as error:
        print(f"{'' if isinstance(error, StoppedError) else 'Error: '}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("Stopped.", file=sys.stderr)
        return 128 + signal_of(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def sft(options: argparse.Namespace) -> None:
    """Fine-tune as a recipe says."""
    from lora_chat.planning.recipe_file import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    if options.accept_change and options.resume is None:
        raise RecipeError("--accept-change belongs to --resume: only a run that goes on can have changed.")
    from lora_chat.console import result_text, say, shown
    from lora_chat.pipeline import fine_tune
    from lora_chat.resuming import ResumeRequest
    from lora_chat.run_progress import Progress

    typed = ["lora-chat", "sft", options.recipe, *(word for setting in options.set for word in ("--set", setting))]
    progress = Progress(command=shlex.join(typed))
    resume = ResumeRequest(options.resume or None, options.accept_change) if options.resume is not None else None
    try:
        result = fine_tune(recipe, progress, resume)
    except KeyboardInterrupt as error:
        raise progress.stopped(signal_of(error)) from None
    say(result_text(result))
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        say(f"Talk to it: lora-chat chat {shown(Path(result['run']))}")


def data(options: argparse.Namespace) -> None:
    """Show what a recipe's data holds: every line, every token, and what carries loss."""
    from lora_chat.planning.recipe_file import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.inspection import look_at_data

    found = look_at_data(recipe, options.show, as_json=options.json)
    print(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def audit(options: argparse.Namespace) -> None:
    """Look for secrets, personal data, duplicates, leaks and more in a recipe's data."""
    from lora_chat.planning.recipe_file import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.errors import DataError
    from lora_chat.inspection import audit_recipe

    found, refuses = audit_recipe(recipe, options.to, as_json=options.json)
    print(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))
    if refuses:
        raise DataError("The recipe refuses what was found: `sft` would stop here.")


def chat(options: argparse.Namespace) -> None:
    """Talk to a run, an adapter or a base."""
    from lora_chat.talking import open_chat

    open_chat(options.thing, options.quantization, options.system, options.max_new_tokens, options.json).run()


def evaluate(options: argparse.Namespace) -> None:
    """Measure a run again on its held-out dialogues and questions."""
    from lora_chat.later import evaluate_run

    result = evaluate_run(options.run)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))


def merge(options: argparse.Namespace) -> None:
    """Fold a run's adapter into a 16-bit model and prove it; several are added up."""
    from lora_chat.later import merge_runs

    result = merge_runs(
        options.run, options.weights, Path(options.to), original=options.into == "original", accept=options.accept
    )
    if options.json:
        print(json.dumps(result, ensure_ascii=False))


def export(options: argparse.Namespace) -> None:
    """Write a run for llama.cpp: merged or the adapter alone, opened there and compared."""
    from lora_chat.exporting import export_run

    result = export_run(options.run, options.to, options.type, options.out, accept=options.accept)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))


def recipe(options: argparse.Namespace) -> None:
    """Print the resolved recipe, or the JSON schema of recipes."""
    if options.schema:
        from lora_chat.planning.recipe import Recipe

        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if options.recipe is None:
        raise RecipeError("Name a recipe, for example: lora-chat recipe recipes/quickstart.yaml")
    from lora_chat.planning.recipe_file import read_recipe, recipe_as_yaml

    found = read_recipe(options.recipe, options.set)
    print(json.dumps(found.model_dump(mode="json")) if options.json else recipe_as_yaml(found), end="")
    if options.json:
        print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-chat",
        description="Fine-tune a chat model with LoRA on the computer you have, and know what it learned.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lora-chat {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=command.__doc__, description=command.__doc__, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="results as JSON on stdout, everything else on stderr")
        sub.add_argument("--verbose", action="store_true", help="show what the libraries say")
        sub.set_defaults(command=command)
        return sub

    def add_settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="change a setting of the recipe; may be repeated",
        )

    sub = add("sft", sft)
    sub.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    sub.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="go on with a run that was cut short (the newest)"
    )
    sub.add_argument(
        "--accept-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="with --resume: go on though FIELD changed, such as training.epochs",
    )
    add_settings(sub)
    sub = add("data", data)
    sub.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    sub.add_argument("--show", type=_count, default=0, metavar="N", help="show N dialogues with what carries loss")
    add_settings(sub)
    sub = add("audit", audit)
    sub.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    sub.add_argument("--to", type=Path, metavar="FILE", help="write the training dialogues there, redacted if so set")
    add_settings(sub)
    sub = add("chat", chat)
    sub.add_argument("thing", metavar="RUN|ADAPTER|BASE", help="a run folder, an adapter folder, or a base model")
    sub.add_argument("--system", help="the system message; by default that of training")
    sub.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest reply (256)")
    sub.add_argument(
        "--quantization", choices=["4bit", "8bit", "none"], help="by default that of training; a base: none"
    )
    sub = add("eval", evaluate)
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub = add("merge", merge)
    sub.add_argument("run", metavar="RUN", nargs="+", help="a run folder; several of one base are added up")
    sub.add_argument("--to", required=True, metavar="DIR", help="a new folder for the merged model")
    sub.add_argument("--weights", type=_weights, metavar="W,W,...", help="how much of each run, such as 0.7,0.3 (1)")
    sub.add_argument(
        "--into",
        choices=["trained", "original"],
        default="trained",
        help="the base's values as they were trained against, dequantised (exact), or its original weights",
    )
    sub.add_argument("--accept", action="store_true", help="keep what does not pass its proof; the proof says so")
    sub = add("export", export)
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub.add_argument(
        "--to",
        required=True,
        choices=["gguf", "gguf-adapter", "ollama"],
        help="gguf: one model for llama.cpp and what is built on it; gguf-adapter: the LoRA alone, for its --lora; "
        "ollama: a GGUF with a Modelfile",
    )
    sub.add_argument(
        "--type",
        nargs="+",
        default=[],
        metavar="TYPE",
        help="of a GGUF, one or several: f32 f16 bf16 q8_0 (the default) q6_k q5_k_m q5_k_s q4_k_m q4_k_s q3_k_m",
    )
    sub.add_argument("--out", type=Path, metavar="DIR", help="a new folder (exports/RUN-FORMAT)")
    sub.add_argument("--accept", action="store_true", help="keep what does not pass its proof; the proof says so")
    sub = add("recipe", recipe)
    sub.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file")
    sub.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add_settings(sub)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _weights(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("must be numbers with commas between them, such as 0.7,0.3") from None
    if not all(abs(value) < 100 for value in values):  # also refuses NaN
        raise argparse.ArgumentTypeError("must be numbers below 100")
    return values


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _quiet() -> None:
    """Libraries keep to themselves; what matters to the user is said by lora_chat."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1" if not sys.stderr.isatty() else "0")
    for name in ("bitsandbytes", "transformers", "trl", "peft", "accelerate", "datasets", "torch", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

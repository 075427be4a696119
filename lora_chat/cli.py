"""The command line: one function per command. Parse, call one function below, print."""

# Before any other import: no module may come from the working directory.
import lora_chat.system.import_path  # noqa: F401

# isort: split
import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.commands.parser import make_parser
from lora_chat.errors import ConsentError, IntegrityError, LoraChatError, RecipeError, StoppedError, explain_disk_error
from lora_chat.system.bounded_call import is_panic, panic_text
from lora_chat.system.console import guard_output, print_error, print_json, print_result, say
from lora_chat.system.environment import check_folders, make_search_paths_absolute
from lora_chat.system.hub_code import block_hub_code
from lora_chat.system.signals import raise_on_signals, signal_of

if TYPE_CHECKING:
    from lora_chat.pipeline.open_adapter import Trust

# Before any library is imported: nothing is reported home, no code comes from a hub (RELIABILITY: kernels).
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "USE_HUB_KERNELS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_XET": "1",
}
# oneDNN and PyTorch's door to it keep compiled products of the last 1,024 shapes each; micro-batches hardly ever have
# the same shape twice, so that was 0.9 GB after a hundred steps, and no step the faster.
_SMALLER_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "64"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    guard_output()
    options = make_parser(_COMMANDS).parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    block_hub_code()
    if "LD_LIBRARY_PATH" in make_search_paths_absolute(os.environ):  # the loader has read it already
        say("LD_LIBRARY_PATH has an empty or relative element, so libraries of the working directory are loaded.")
    for name, value in _SMALLER_CACHES.items():
        os.environ.setdefault(name, value)
    raise_on_signals()
    if not options.verbose:
        _quiet()
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        check_folders(os.environ)
        command(options)
        return 0
    except ConsentError as error:
        words = sys.argv[1:] if arguments is None else arguments
        say(f"Error: {error.message}\nIf you trust it: {shlex.join(['lora-chat', *words, error.flag])}")
        return error.exit_code
    except LoraChatError as error:
        print_error(str(error), label="" if isinstance(error, StoppedError) else "Error: ")
        return error.exit_code
    except KeyboardInterrupt as error:
        say("Stopped.")
        return 128 + signal_of(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        explained = explain_disk_error(error)
        if explained is None:
            raise
        print_error(str(explained))
        return explained.exit_code
    except BaseException as error:
        if not is_panic(error):
            raise
        print_error(f"A library failed on a file that it read, which is damaged or made to do so: {panic_text(error)}")
        return IntegrityError.exit_code


def sft(options: argparse.Namespace) -> None:
    """Fine-tune as a recipe says."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    if options.accept_change and options.resume is None:
        raise RecipeError("--accept-change belongs to --resume: only a run that goes on can have changed.")
    if options.adopt and options.resume is None:
        raise RecipeError("--adopt belongs to --resume: a new run is your own.")
    from lora_chat.evaluation.format import result_text
    from lora_chat.pipeline.fine_tune import fine_tune
    from lora_chat.pipeline.resume import ResumeRequest
    from lora_chat.pipeline.run_status import Progress
    from lora_chat.system.console import pasted

    typed = ["lora-chat", "sft", options.recipe, *(word for setting in options.set for word in ("--set", setting))]
    progress = Progress(command=shlex.join(typed))
    resume = None
    if options.resume is not None:
        resume = ResumeRequest(options.resume or None, options.accept_change, options.adopt)
    try:
        result = fine_tune(recipe, progress, resume)
    except KeyboardInterrupt as error:
        raise progress.stopped(signal_of(error)) from None
    say(result_text(result))
    if result.get("forecast"):
        from lora_chat.pipeline.estimate_history import record_text

        say(record_text(result["forecast"]))
    if options.json:
        print_json(result)
    else:
        say(f"Talk to it: lora-chat chat {pasted(Path(result['run']))}")


def plan(options: argparse.Namespace) -> None:
    """Say before any weight loads whether a recipe fits, how long it takes, and what to change."""
    from lora_chat.config.load import read_recipe

    if options.history:
        from lora_chat.pipeline.estimate_history import history_text, read_history
        from lora_chat.system.user_path import user_path

        folder = read_recipe(options.recipe, options.set).output.directory if options.recipe else "runs"
        records = read_history(user_path(folder, "output.directory: "))
        print_json(records) if options.json else print_result(history_text(records))
        return
    if options.recipe is None:
        raise RecipeError("Name a recipe, for example: lora-chat plan recipes/quickstart.yaml")
    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.estimate import forecast_recipe
    from lora_chat.planning.format import whole_forecast

    found = forecast_recipe(recipe, options.gpu, options.memory)
    print_json(found.as_dict()) if options.json else print_result(whole_forecast(found))


def data(options: argparse.Namespace) -> None:
    """Show what a recipe's data holds: every line, every token, and what carries loss."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.inspect_data import look_at_data

    found = look_at_data(recipe, options.show, as_json=options.json)
    print_json(found) if isinstance(found, dict) else print_result(found)


def audit(options: argparse.Namespace) -> None:
    """Look for secrets, personal data, duplicates, leaks and more in a recipe's data."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.errors import DataError
    from lora_chat.pipeline.inspect_data import audit_recipe

    found, refuses = audit_recipe(recipe, options.to, as_json=options.json)
    print_json(found) if isinstance(found, dict) else print_result(found)
    if refuses:
        raise DataError("The recipe refuses what was found: `sft` would stop here.")


def chat(options: argparse.Namespace) -> None:
    """Talk to a run, a parcel, an adapter or a base."""
    from lora_chat.pipeline.open_chat import open_chat

    trust = _trust(options)
    open_chat(options.thing, options.quantization, options.system, options.max_new_tokens, options.json, trust).run()


def evaluate(options: argparse.Namespace) -> None:
    """Measure a run again on what it held out, or a run, parcel or adapter on dialogues of your own."""
    from lora_chat.pipeline.evaluate import evaluate_thing
    from lora_chat.pipeline.held_out import Own

    result = evaluate_thing(options.thing, Own(options.data, options.questions), _trust(options))
    if options.json:
        print_json(result)


def merge(options: argparse.Namespace) -> None:
    """Fold an adapter into a 16-bit model and prove it; several are added up."""
    from lora_chat.pipeline.held_out import Own
    from lora_chat.pipeline.merge_adapters import merge_things

    result = merge_things(
        options.thing,
        options.weights,
        Path(options.to),
        Own(options.data),
        _trust(options),
        original=options.into == "original",
        accept=options.accept,
    )
    if options.json:
        print_json(result)


def export(options: argparse.Namespace) -> None:
    """Write an adapter for other programs, merged or alone, opened there and compared."""
    from lora_chat.pipeline.export_adapter import export_thing
    from lora_chat.pipeline.held_out import Own

    own, trust = Own(options.data), _trust(options)
    result = export_thing(options.thing, options.to, options.type, options.out, own, trust, accept=options.accept)
    if options.json:
        print_json(result)


def pack(options: argparse.Namespace) -> None:
    """Make one small file of a run that others can check: weights, config, card and receipt."""
    from lora_chat.pipeline.pack_run import pack_run

    result = pack_run(options.run, options.out, options.license, options.key, _trust(options))
    if options.json:
        print_json(result)


def verify(options: argparse.Namespace) -> None:
    """Check a parcel: structure, digests, weights, receipt, signature, and its base where that is at hand."""
    from lora_chat.errors import IntegrityError
    from lora_chat.pipeline.held_out import Own
    from lora_chat.pipeline.verify_parcel import report_text, verify_parcel

    own = Own(options.data, options.questions)
    report = verify_parcel(options.parcel, own, _trust(options), again=options.again)
    print_json(report) if options.json else print_result(report_text(report))
    if not report["passed"]:
        raise IntegrityError(f"{options.parcel} is refused.")


def push(options: argparse.Namespace) -> None:
    """Send a parcel to a repository of the Hugging Face hub, in PEFT's layout."""
    from lora_chat.pipeline.publish import push_parcel

    result = push_parcel(options.parcel, options.repository, private=options.private)
    if options.json:
        print_json(result)


def pull(options: argparse.Namespace) -> None:
    """Fetch an adapter that was pushed so, verify it, and keep it as a parcel."""
    from lora_chat.pipeline.publish import pull_parcel

    result = pull_parcel(options.repository, options.revision, options.out, options.signer)
    if options.json:
        print_json(result)


def recipe(options: argparse.Namespace) -> None:
    """Print the resolved recipe, or the JSON schema of recipes."""
    if options.schema:
        from lora_chat.config.recipe import Recipe

        print_json(Recipe.model_json_schema(), indent=2)
        return
    if options.recipe is None:
        raise RecipeError("Name a recipe, for example: lora-chat recipe recipes/quickstart.yaml")
    from lora_chat.config.load import read_recipe, recipe_as_yaml

    found = read_recipe(options.recipe, options.set)
    print_json(found.model_dump(mode="json")) if options.json else print_result(recipe_as_yaml(found), end="")


def _trust(options: argparse.Namespace) -> "Trust":
    from lora_chat.pipeline.open_adapter import Trust

    given = {
        key: getattr(options, key)
        for key in ("base", "force_base", "accept_template", "signer", "adopt")
        if key in options
    }
    return Trust(**given)


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


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "sft": sft,
    "plan": plan,
    "data": data,
    "audit": audit,
    "chat": chat,
    "eval": evaluate,
    "merge": merge,
    "export": export,
    "pack": pack,
    "verify": verify,
    "push": push,
    "pull": pull,
    "recipe": recipe,
}

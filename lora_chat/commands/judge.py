"""`lora-chat judge`: compare replies of two models without knowing which is which."""

import argparse
from typing import TYPE_CHECKING

from lora_chat.commands.options import ADAPTER_HELP, add_trust, non_negative_int, positive_int, read_trust
from lora_chat.errors import MissingPackageError
from lora_chat.system.console import print_json, print_result
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from lora_chat.evaluation.run_judgements import RunJudgements


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `judge`."""
    parser.add_argument(
        "run_folder", metavar="RUN", help="the run whose held-out prompts are answered; it keeps the votes"
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="A B",
        help=f"the models to compare: {ADAPTER_HELP}, or `base` (default: the run and its base; one is compared "
        "with the run)",
    )
    parser.add_argument(
        "--result", action="store_true", help="print the result of the votes so far, without a server or a model"
    )
    parser.add_argument("--judge", metavar="NAME", help="your name beside your votes, if several people judge")
    parser.add_argument("--prompts", type=positive_int, default=50, metavar="N", help="number of prompts to judge (50)")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_int,
        metavar="N",
        help="largest number of tokens of a reply (default: as in the comparison of the run)",
    )
    parser.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base (default: as in training)",
    )
    parser.add_argument("--port", type=non_negative_int, default=0, metavar="N", help="port of the page (a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the link of the page and open no browser")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Compare replies of two models blindly, and store the votes in the run."""
    if options.result:
        _print_result(options)
        return
    from lora_chat.pipeline.judge_plan import JudgeSettings, check_judge_options

    try:
        from lora_chat.serving.run_judge import run_judge
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The judge page needs a package that is not installed ({error.name}). Fix: pip install 'lora-chat[serve]'"
        ) from error
    settings = JudgeSettings(options.prompts, options.max_new_tokens, options.quantization)
    models = check_judge_options(options.run_folder, options.models, settings, options.judge)
    result = run_judge(
        options.run_folder,
        models,
        read_trust(options),
        settings,
        judge=options.judge,
        port=options.port,
        opens_browser=not options.no_browser,
    )
    if options.json:
        print_json({"run": options.run_folder, **result.as_dict()})


def _print_result(options: argparse.Namespace) -> None:
    """Print the result of the votes on the present adapter of a run."""
    from lora_chat.evaluation.run_judgements import collect_run_judgements
    from lora_chat.runs.run_folder import open_run_folder

    judgements = collect_run_judgements(open_run_folder(options.run_folder))
    if options.models:
        judgements = _select_models(options, judgements)
    if options.json:
        print_json({"run": options.run_folder, **judgements.as_dict()})
        return
    for line in judgements.lines or [f"No votes yet. Judge with: lora-chat judge {options.run_folder}"]:
        print_result(sanitize_line(line))


def _select_models(options: argparse.Namespace, judgements: "RunJudgements") -> "RunJudgements":
    """Return the results of the two models that the user named."""
    from lora_chat.evaluation.run_judgements import RunJudgements
    from lora_chat.pipeline.judge_plan import JudgeSettings, check_judge_options, collect_named_results
    from lora_chat.runs.run_folder import open_run_folder

    models = check_judge_options(options.run_folder, options.models, JudgeSettings(), None)
    results = collect_named_results(open_run_folder(options.run_folder), *models)
    return RunJudgements(tuple(reversed(results)), ignored_lines=judgements.ignored_lines)

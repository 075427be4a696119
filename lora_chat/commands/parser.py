"""The words of the command line: which commands there are, and what each understands."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat import __version__
from lora_chat.system.console import print_result, say

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Command = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """An argument parser whose help and errors, which quote what was typed, go through the one door."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.color = False
        """Python 3.14 colours its messages; the door would show that as escapes."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        if message and file is sys.stdout:
            print_result(message, end="")
        elif message:
            say(message.rstrip("\n"))


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of the whole command line; a command's docstring is its help."""
    parser = Parser(
        prog="lora-chat",
        description="Fine-tune a chat model with LoRA on the computer you have, and know what it learned.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lora-chat {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str) -> argparse.ArgumentParser:
        command = commands[name]
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

    sub = add("sft")
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
    sub.add_argument("--adopt", action="store_true", help="with --resume: take a run that you did not make as your own")
    add_settings(sub)
    sub = add("plan")
    sub.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    card = sub.add_mutually_exclusive_group()
    card.add_argument("--gpu", metavar="NAME", help="plan for this card, such as 'RTX 4090'; by default this machine")
    card.add_argument("--memory", metavar="SIZE", help="plan for a GPU with so much memory, such as 12GiB")
    sub.add_argument("--history", action="store_true", help="forecast against measured, of all runs here")
    add_settings(sub)
    sub = add("data")
    sub.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    sub.add_argument("--show", type=_count, default=0, metavar="N", help="show N dialogues with what carries loss")
    add_settings(sub)
    sub = add("audit")
    sub.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
    sub.add_argument("--to", type=Path, metavar="FILE", help="write the training dialogues there, redacted if so set")
    add_settings(sub)
    sub = add("chat")
    sub.add_argument("thing", metavar="RUN|PARCEL|ADAPTER|BASE", help="a run, a parcel, an adapter's folder, or a base")
    sub.add_argument("--system", help="the system message; by default that of training")
    sub.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest reply (256)")
    sub.add_argument(
        "--quantization", choices=["4bit", "8bit", "none"], help="by default that of training; a base: none"
    )
    _add_trust(sub)
    sub = add("eval")
    sub.add_argument("thing", metavar="RUN|PARCEL|ADAPTER", help="a run, a parcel, or an adapter's folder")
    _add_own(sub)
    sub.add_argument("--questions", metavar="FILE", help="with --data: questions of your own")
    _add_trust(sub)
    sub = add("merge")
    sub.add_argument(
        "thing",
        metavar="RUN|PARCEL|ADAPTER",
        nargs="+",
        help="a run, a parcel, or an adapter's folder; several of one base are added up",
    )
    sub.add_argument("--to", required=True, metavar="DIR", help="a new folder for the merged model")
    sub.add_argument("--weights", type=_weights, metavar="W,W,...", help="how much of each, such as 0.7,0.3 (1)")
    sub.add_argument(
        "--into",
        choices=["trained", "original"],
        default="trained",
        help="the base's values as they were trained against, dequantised (exact), or its original weights",
    )
    sub.add_argument("--accept", action="store_true", help="keep what does not pass its proof; the proof says so")
    _add_own(sub)
    _add_trust(sub)
    sub = add("export")
    sub.add_argument("thing", metavar="RUN|PARCEL|ADAPTER", help="a run, a parcel, or an adapter's folder")
    sub.add_argument(
        "--to",
        required=True,
        choices=["gguf", "gguf-adapter", "ollama", "peft"],
        help="gguf: one model for llama.cpp and what is built on it; gguf-adapter: the LoRA alone, for its --lora; "
        "ollama: a GGUF with a Modelfile; peft: the plain folder",
    )
    sub.add_argument(
        "--type",
        nargs="+",
        default=[],
        metavar="TYPE",
        help="of a GGUF, one or several: f32 f16 bf16 q8_0 (the default) q6_k q5_k_m q5_k_s q4_k_m q4_k_s q3_k_m",
    )
    sub.add_argument("--out", type=Path, metavar="DIR", help="a new folder (exports/NAME-FORMAT)")
    sub.add_argument("--accept", action="store_true", help="keep what does not pass its proof; the proof says so")
    _add_own(sub)
    _add_trust(sub)
    sub = add("pack")
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub.add_argument("--out", type=Path, metavar="FILE", help="where to (NAME.lorachat)")
    sub.add_argument("--license", metavar="ID", help="of the adapter, as SPDX spells it, such as CC-BY-4.0")
    sub.add_argument("--key", type=Path, metavar="FILE", help="sign with this private key (PEM, elliptic curve)")
    sub.add_argument("--base", metavar="BASE", help="where its base is, a folder or a hub id, if not where it was")
    _add_consent(sub)
    sub = add("verify")
    sub.add_argument("parcel", metavar="PARCEL", help="a file that `pack` or `pull` wrote")
    sub.add_argument("--again", action="store_true", help="load the base and measure again what can be: minutes")
    _add_own(sub)
    sub.add_argument("--questions", metavar="FILE", help="with --data: questions of your own")
    _add_trust(sub)
    sub = add("push")
    sub.add_argument("parcel", metavar="PARCEL", help="a file that `pack` wrote")
    sub.add_argument("repository", metavar="OWNER/NAME", help="made if it is not there")
    sub.add_argument("--private", action="store_true", help="if it is made, only for you")
    sub = add("pull")
    sub.add_argument("repository", metavar="OWNER/NAME", help="a repository that `push` filled")
    sub.add_argument("--revision", metavar="COMMIT", help="branch, tag or commit")
    sub.add_argument("--out", type=Path, metavar="FILE", help="where to (NAME.lorachat)")
    sub.add_argument("--signer", type=Path, metavar="KEY", help="refuse what this public key has not signed")
    sub = add("recipe")
    sub.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file")
    sub.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add_settings(sub)
    return parser


def _add_own(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", metavar="FILE", help="dialogues of your own to measure with; a run has what it held out")


def _add_trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--base", metavar="BASE", help="where the base is: a folder or a hub id; its digest is compared")
    sub.add_argument("--force-base", action="store_true", help="use that base though it is another")
    _add_consent(sub)
    sub.add_argument("--signer", type=Path, metavar="KEY", help="refuse a parcel that this public key has not signed")


def _add_consent(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--accept-template", action="store_true", help="use a chat template that the adapter brings")
    sub.add_argument(
        "--adopt",
        action="store_true",
        help="sign a run as your own, such as one of an older version: no more questions",
    )


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

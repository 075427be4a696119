"""Options that several commands share, and the types of their values."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import UsageError

if TYPE_CHECKING:
    from lora_chat.config.generation_section import GenerationSection
    from lora_chat.pipeline.open_adapter import TrustOptions

RECIPE_HELP = "a YAML file, or a name that `lora-chat recipes` lists"
ADAPTER_HELP = "a run, a parcel, or the folder of an adapter"
_UNIT_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
ACCEPT_HELP = "keep a result that fails its parity check; the report says so"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, which changes one setting of a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the recipe; may be repeated",
    )


def add_start_consent(parser: argparse.ArgumentParser) -> None:
    """Add the option by which a user accepts the chat template of the adapter in `adapter.start`."""
    parser.add_argument(
        "--accept-template",
        action="store_true",
        help="use the chat template that comes with the adapter of adapter.start",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, dialogues of the user to measure with."""
    parser.add_argument(
        "--data", metavar="FILE", help="your own dialogues to measure with (default: the validation set of the run)"
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add `--questions`, questions of the user."""
    parser.add_argument("--questions", metavar="FILE", help="with --data: your own questions")


def add_parent(parser: argparse.ArgumentParser) -> None:
    """Add `--parent`, the adapter from which the training of another started."""
    parser.add_argument(
        "--parent", metavar="RUN|PARCEL|ADAPTER", help="the adapter that it was trained on from; its digest is compared"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model that replies: length, quantization and thoughts."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="largest number of tokens of a reply (256)",
    )
    parser.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base (default: as in training; for a base: none)",
    )
    parser.add_argument(
        "--thinking",
        choices=["on", "off"],
        help="thoughts before replies (default: as in training)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options by which each next token is chosen."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most probable token (default), 1 samples",
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from the most probable tokens that sum to P (1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")


def read_sampling(options: argparse.Namespace) -> "GenerationSection":
    """Return the sampling settings of the user. Raise UsageError with the flag for a value without sense."""
    from pydantic import ValidationError

    from lora_chat.config.generation_section import GenerationSection

    values = {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
    try:
        return GenerationSection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UsageError(
                f"--top-p {options.top_p:g} changes nothing at temperature 0, which takes the most probable token. "
                "Fix: add --temperature 0.8, or leave it out."
            ) from error
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')}"
        field = GenerationSection.model_fields[name]
        raise UsageError(f"{flag} {values[name]}: {first['msg']}. Fix: leave it out ({field.default}).") from error


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options for the base, chat template and signer that the user accepts."""
    parser.add_argument("--base", metavar="BASE", help="folder or hub id of the base; its digest is compared")
    parser.add_argument("--force-base", action="store_true", help="use that base although its digest differs")
    add_consent(parser)
    parser.add_argument(
        "--signer", type=Path, metavar="KEY", help="refuse a parcel without a signature of this public key"
    )


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a user accepts an untrusted chat template or run."""
    parser.add_argument(
        "--accept-template", action="store_true", help="use the chat template that comes with the adapter"
    )
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="sign a run that another person or an older version made as your own; it is then used without questions",
    )


def read_trust(options: argparse.Namespace) -> "TrustOptions":
    """Return the trust options of the user, from the options that the command has."""
    from lora_chat.pipeline.open_adapter import TrustOptions

    names = ("base", "force_base", "accept_template", "signer", "adopt")
    return TrustOptions(**{name: getattr(options, name) for name in names if name in options})


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def age_seconds(text: str) -> float:
    """Parse an age such as `30d`, `12h` or `2w`. Return seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNIT_SECONDS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise argparse.ArgumentTypeError("must be a number with h, d or w, such as 30d")
    return float(number) * _UNIT_SECONDS[unit]


def blend_weights(text: str) -> list[float]:
    """Parse numbers below 100 with commas between them."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("must be numbers with commas between them, such as 0.7,0.3") from None
    if not all(abs(value) < 100 for value in values):  # also refuses NaN
        raise argparse.ArgumentTypeError("must be numbers below 100")
    return values

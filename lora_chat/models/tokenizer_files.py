"""Which files a base's tokenizer is read from, and whether this environment can read them."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import MissingPackageError, UnavailableError, first_line
from lora_chat.system.bounded_files import SMALL_FILE_BYTES, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCEPIECE_NAMES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
)
_OTHER_VOCABULARIES = ("vocab.json", "vocab.txt", "tiktoken.model")
_MISTRAL_NAMES = ("tekken.json",)
_NEEDED_PACKAGES = ("sentencepiece", "google.protobuf")
_SAMPLE, _SPACE = "the cat", "\u2581"
"""Plain words, and the character of a space in a SentencePiece model."""
_PROCESSOR_TEMPLATE_NAME = "chat_template.json"


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Raise UnavailableError, with the fix, for a folder whose tokenizer files cannot be read."""
    if (folder / "tokenizer.json").is_file() or any((folder / file).is_file() for file in _OTHER_VOCABULARIES):
        return
    if find_sentencepiece_model(folder) is not None:
        if not all(_is_installed(package) for package in _NEEDED_PACKAGES):
            raise MissingPackageError(
                f"The tokenizer of {name} is a SentencePiece model without tokenizer.json. "
                "Fix: pip install sentencepiece protobuf, or add the tokenizer.json of the base."
            )
        return
    if any((folder / file).is_file() for file in _MISTRAL_NAMES):
        raise UnavailableError(
            f"The tokenizer of {name} is only a tekken.json, the format of mistral-common, which has no chat template. "
            "Fix: add tokenizer.json and tokenizer_config.json of the same model in Hugging Face layout."
        )
    if any(path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens")) for path in folder.iterdir()):
        return  # Transformers says which file is missing
    raise UnavailableError(
        f"There are no tokenizer files in {folder}. Fix: add tokenizer.json and tokenizer_config.json of the base."
    )


def describe_reading_error(error: BaseException) -> str:
    """Return the first line of an error of Transformers, or its meaning if that line says nothing."""
    if "instantiate the backend tokenizer" in str(error):
        return (
            "Transformers does not know which of its files to use. Fix: add tokenizer.json, or a tokenizer_config.json "
            "with its tokenizer_class, such as LlamaTokenizer, beside the file that this class reads."
        )
    return first_line(error)


def find_sentencepiece_model(folder: Path) -> Path | None:
    """Return the SentencePiece model of a folder that has no tokenizer.json."""
    if (folder / "tokenizer.json").is_file():
        return None
    return next((folder / name for name in _SENTENCEPIECE_NAMES if (folder / name).is_file()), None)


def check_sentencepiece(folder: Path, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Raise UnavailableError if a loaded tokenizer begins a text with a space and its SentencePiece model does not.

    The opposite is refused too. Without tokenizer_config.json, Transformers leaves out the space before the first word.
    """
    path = find_sentencepiece_model(folder)
    if path is None:
        return
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
        first = model.id_to_piece(model.encode(_SAMPLE)[0])
    except Exception as error:
        raise UnavailableError(f"The tokenizer of {name} cannot be read: {path.name} is damaged.") from error
    begin = tokenizer.convert_ids_to_tokens(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"][:1])
    if first.startswith(_SPACE) != str(begin[0]).startswith(_SPACE):
        raise UnavailableError(
            f"Transformers reads {path.name} of {name} differently from SentencePiece, so training would use other "
            "tokens than pretraining. Fix: add the base's tokenizer.json, or a tokenizer_config.json with its "
            "tokenizer_class, such as LlamaTokenizer."
        )


def read_processor_template(folder: Path) -> str | None:
    """Return the chat template in the file that earlier multimodal processors wrote, if there is one."""
    path = folder / _PROCESSOR_TEMPLATE_NAME
    if not path.is_file():
        return None
    content = read_json(path, SMALL_FILE_BYTES, UnavailableError)
    template = content.get("chat_template") if isinstance(content, dict) else None
    return template if isinstance(template, str) else None


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False

"""Comparison of the tokenizer that another tool saved beside an adapter with the base's."""

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, LoraChatError, first_line
from lora_chat.models.base_files import TOKENIZER_FILES, VOCABULARY_FILES, check_base_files
from lora_chat.models.base_model import TOKENIZER_SAMPLE_TEXT, LocalBase
from lora_chat.system.bounded_call import call_with_timeout, is_rust_panic
from lora_chat.system.bounded_files import LARGE_FILE_BYTES, read_bytes
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SAMPLE_TEXTS = (
    TOKENIZER_SAMPLE_TEXT,
    "  x = 12345.67\r\n\n\n\tif a!=b: return  'don''t'",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁ Ⅳ é e\u0301 Straße İstanbul",
    "Привет мир، مرحبا שלום नमस्ते こんにちは 안녕하세요",
)
"""Texts whose ids differ if merges, normalization or splitting into words differ."""
_TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token")
"""Special tokens that templates use as variables."""
_TIMEOUT_SECONDS = 20.0
_NO_LIMIT = 10**9
_MAX_SHOWN_TOKENS = 3


def check_tokenizer_beside(
    name: str, folder: Path, base: LocalBase, tokenizer: "PreTrainedTokenizerBase", *, force: bool
) -> None:
    """Compare the tokenizer in an adapter's folder, if there is one, with the base's.

    Special tokens that the chat template uses are taken over. Raises IntegrityError if the tokenizers encode text
    differently; `force` logs it instead. A token for padding may be added, because no text contains it.
    """
    if not any((folder / file).exists() for file in VOCABULARY_FILES):
        return
    own = _load_tokenizer(name, folder, base)
    difference = _find_difference(own, tokenizer)
    if difference and not force:
        raise IntegrityError(
            f"The adapter {name} was trained with another tokenizer than that of {base.name}: {difference}.\n"
            "Fix: name the base with that tokenizer with --base; or, if its tokens were added for training, the base "
            "to which they were added; --force-base uses the base's tokenizer anyway."
        )
    if difference:
        logger.warning(f"{name} was trained with another tokenizer: {difference}. Its replies may be wrong.")
    _adopt_special_tokens(own, tokenizer)


def _load_tokenizer(name: str, folder: Path, base: LocalBase) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in an adapter's folder from copies of its files, beside the config of the base.

    Raises IntegrityError if it cannot be loaded or used.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="lora-chat-", ignore_cleanup_errors=True) as copy:
        shutil.copyfile(base.folder / "config.json", Path(copy) / "config.json")
        for file in TOKENIZER_FILES:
            if (folder / file).exists():
                (Path(copy) / file).write_bytes(read_bytes(folder / file, LARGE_FILE_BYTES))
        try:
            check_base_files(Path(copy))
            own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                copy, local_files_only=True, trust_remote_code=False
            )
            own.model_max_length = _NO_LIMIT  # otherwise Transformers warns about a long text
            call_with_timeout(
                lambda: [own(text) for text in _SAMPLE_TEXTS], _TIMEOUT_SECONDS, f"The tokenizer of {name}"
            )
        except BaseException as error:
            if not isinstance(error, Exception | LoraChatError) and not is_rust_panic(error):
                raise
            reason = sanitize_line(first_line(error).replace(copy, str(folder)), 300)
            raise IntegrityError(
                f"The tokenizer beside the adapter {name} cannot be read: {reason}\n"
                "Fix: copy or download the folder again; or delete its tokenizer files, if it was trained with the "
                "tokenizer of its base."
            ) from error
    return own


def _find_difference(own: "PreTrainedTokenizerBase", base: "PreTrainedTokenizerBase") -> str | None:
    """Return how two tokenizers differ, as a clause; None if they encode text the same."""
    ours, theirs = own.get_vocab(), base.get_vocab()
    moved = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    if moved:
        ids = f"{ours[moved[0]]} there and {theirs[moved[0]]} in the base"
        return f"{len(moved):,} tokens have other ids ({_show(moved)}: {ids})"
    added = sorted(ours.keys() - theirs.keys() - {str(own.pad_token)})
    if added:
        return f"it has {len(added):,} tokens more than the base ({_show(added)})"
    removed = sorted(theirs.keys() - ours.keys())
    if removed:
        return f"it lacks {len(removed):,} tokens of the base ({_show(removed)})"
    for text in _SAMPLE_TEXTS:
        if own.encode(text, add_special_tokens=False) != base.encode(text, add_special_tokens=False):
            return "it encodes a sample text with other ids"
    return None


def _show(tokens: list[str]) -> str:
    """Return the first tokens for a message."""
    shown = ", ".join(sanitize_line(ascii(token)[1:-1], 50) for token in tokens[:_MAX_SHOWN_TOKENS])
    return f"{shown}, ..." if len(tokens) > _MAX_SHOWN_TOKENS else shown


def _adopt_special_tokens(own: "PreTrainedTokenizerBase", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Set the special tokens that the template writes to those of training, because some tools change them."""
    template = str(tokenizer.chat_template)
    vocabulary = tokenizer.get_vocab()
    for field in _TEMPLATE_TOKENS:
        token = getattr(own, field, None)
        if token in (None, getattr(tokenizer, field, None)) or not re.search(rf"\b{field}\b", template):
            continue
        if str(token) in vocabulary:
            setattr(tokenizer, field, token)
            logger.info(f"The chat template writes {field} as in training: {sanitize_line(str(token), 50)}.")

"""The GPU that a name means: its usual name, its driver's name, or a part of either."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_chat.errors import UsageError

_IGNORED_WORDS = frozenset(
    (
        *("nvidia", "corporation", "geforce", "tesla", "graphics", "gpu", "card", "generation"),
        *("edition", "workstation", "server", "design", "with", "vram"),
    )
)
"""Words of driver names that no two GPUs differ in."""
_FORM_WORDS = frozenset(("sxm", "pcie", "nvl"))
"""Form factors. A GPU whose name has none of them has the same figures in all."""
_MAX_LISTED = 8
"""Largest number of GPUs that a message lists."""
_SPELLINGS = (
    (r"max[- ]?q", "maxq"),
    # A memory size: `16 GB`, `16g`, `16GiB`.
    (r"\b(\d{1,3}) ?gi?b?\b", r"\1gb"),
    (r"[^a-z0-9]+", " "),
    (r"\b(rtx|gtx|quadro|titan)(?=\d)", r"\1 "),
    (r"\b(\d{4})(?=(ti|super|tisuper|laptop)\b)", r"\1 "),
    (r"\btisuper\b", "ti super"),
    (r"\bsxm\d\b", "sxm"),
    (r"\b(mobile|notebook)\b", "laptop"),
)
"""Patterns and replacements that give different spellings of a name the same words."""


@dataclass(frozen=True)
class _OtherVendor:
    """GPUs that CUDA does not run on, and what a user can do on such a machine."""

    pattern: str
    """Regular expression that finds the vendor's GPUs in a lower-case name."""
    answer: str


_OTHER_VENDORS = (
    _OtherVendor(
        r"\b(amd|radeon|instinct|rocm|gfx\d+|mi ?\d{2,3}[axp]?|rx ?\d{4}|w[67]\d00|\d{4} ?xtx?|9070)\b",
        "AMD GPUs need PyTorch's ROCm build, with which lora_chat is untested, so there is no plan for them",
    ),
    _OtherVendor(
        r"\b(intel|arc|xpu|[ab](310|380|570|580|750|770)|max 1[15]\d0)\b",
        "Intel GPUs are not used; lora_chat trains on the CPU of such a machine",
    ),
    _OtherVendor(
        r"\b(apple|mps|metal|m[1-9]( (pro|max|ultra))?)\b",
        "Apple GPUs are not used; lora_chat trains on the CPU of such a machine",
    ),
)


@dataclass(frozen=True)
class GpuName:
    """The words of a GPU's name, and which of them a user may leave out."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]

    def is_named_by(self, words: frozenset[str]) -> bool:
        """Return whether the words name this GPU."""
        return self.required <= words <= self.required | self.optional

    def includes(self, words: frozenset[str]) -> bool:
        """Return whether the words are part of this GPU's name."""
        return bool(words) and words <= self.required | self.optional


def make_gpu_name(name: str, memory: int) -> GpuName:
    """Return the name of a GPU with this much memory, in bytes."""
    words = _split_name(name)
    optional = {f"{round(memory / 2**30)}gb", "blackwell"} | {word for word in words if re.match(r"\d+gb|hbm", word)}
    optional |= words & _FORM_WORDS or _FORM_WORDS
    if any(word.isdigit() for word in words):
        optional |= words & {"rtx", "gtx"}
    return GpuName(name, words - optional, frozenset(optional))


def find_gpu_name(text: str, names: Sequence[GpuName]) -> str:
    """Return the name of the GPU that a user means. Raise UsageError if it is unknown, ambiguous or no CUDA GPU."""
    matches = match_gpu_names(text, names)
    if len(matches) == 1:
        return matches[0].name
    if matches:
        raise UsageError(
            f"--gpu {text}: {len(matches)} GPUs have this name. Fix: name one of them:\n"
            + "\n".join(f'  lora-chat plan RECIPE --gpu "{name.name}"' for name in matches[:_MAX_LISTED])
            + ("\n  ..." if len(matches) > _MAX_LISTED else "")
        )
    _refuse_other_vendors(text)
    raise UsageError(
        f"--gpu {text}: unknown GPU. Similar names: {', '.join(_list_similar(text, names))}.\n"
        "Fix: for any other NVIDIA GPU give its memory, for example --memory 12GiB."
    )


def match_gpu_names(text: str, names: Sequence[GpuName]) -> list[GpuName]:
    """Return the names of the GPUs that a text may mean: several for GPUs that differ only in their memory."""
    words = _split_name(text)
    return [name for name in names if name.is_named_by(words)] or [name for name in names if name.includes(words)]


def _split_name(text: str) -> frozenset[str]:
    """Return the words of a name, with one spelling for each."""
    text = text.lower()
    for pattern, replacement in _SPELLINGS:
        text = re.sub(pattern, replacement, text)
    words = frozenset(text.split()) - _IGNORED_WORDS
    # Laptops had `with Max-Q Design` in their name until 2020; a workstation card of 2025 has it too.
    return words if "pro" in words or "maxq" not in words else words - {"maxq"} | {"laptop"}


def _refuse_other_vendors(text: str) -> None:
    """Raise UsageError for a GPU of a vendor without CUDA."""
    for vendor in _OTHER_VENDORS:
        if re.search(vendor.pattern, re.sub(r"[^a-z0-9]+", " ", text.lower())):
            raise UsageError(
                f"--gpu {text}: {vendor.answer}.\n"
                "Fix: to plan for its CPU, run `lora-chat plan RECIPE` there, without --gpu."
            )


def _list_similar(text: str, names: Iterable[GpuName]) -> list[str]:
    """Return the names that are spelled most like a name, or that share a word with it."""
    words = {" ".join(sorted(name.required | name.optional & {"rtx", "gtx"})): name.name for name in names}
    close = difflib.get_close_matches(" ".join(sorted(_split_name(text))), list(words), n=4, cutoff=0.5)
    return [words[key] for key in close] or ["RTX 4090", "RTX 3060 12GB", "A100 80GB", "Tesla T4"]

"""Files that are zip archives of a known kind, such as spreadsheets and checkpoints; none of them is unpacked."""

import re
from collections.abc import Sequence

_ZIP_KINDS = (
    (re.compile(r"xl/"), "an Excel file (.xlsx). Fix: save it as CSV (UTF-8)"),
    (re.compile(r"word/"), "a Word file (.docx). Fix: save it as plain text, and read that with data.format: text"),
    (re.compile(r"ppt/"), "a PowerPoint file (.pptx). Fix: save its text as a file of one of the data formats"),
    (re.compile(r"Index/.*\.iwa"), "a Numbers or Pages file. Fix: export it as CSV (UTF-8)"),
    (re.compile(r"META-INF/container\.xml"), "an EPUB book. Fix: convert it to text (data.format: text)"),
    (re.compile(r"content\.xml"), "an OpenDocument file (.ods, .odt). Fix: save it as CSV or as plain text (UTF-8)"),
    (re.compile(r"(.*/)?data\.pkl"), "a PyTorch checkpoint, which is never loaded. Fix: write JSON lines"),
    (re.compile(r".*\.npy"), "a NumPy archive (.npz). Fix: write the dialogues as JSON lines"),
)  # fmt: skip
"""Pattern for the beginning of a member's name, and a description with the fix."""


def describe_zip(names: Sequence[str]) -> str | None:
    """Return the kind and the fix for an archive that is a file of a known kind, otherwise None."""
    return next((text for pattern, text in _ZIP_KINDS if any(pattern.match(name) for name in names)), None)

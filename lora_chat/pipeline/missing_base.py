"""The message for an adapter whose base is not on this machine."""

import re

from lora_chat.system.sanitize import sanitize_line

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_QUANTIZED_COPY = re.compile(r"-(unsloth-)?bnb-4bit$|-(4|8)bit(-[a-z0-9]+)?$", re.IGNORECASE)
"""Ends of the names of repositories that contain a base in 4 or 8 bits, such as those of Unsloth and mlx-community."""


def explain_missing_base(adapter: str, name: str, revision: str | None) -> str:
    """Return the problem and the remedy for an untrusted adapter whose base must be named."""
    shown = sanitize_line(name, 200)
    problem = f"{adapter} belongs to the base {shown}"
    if revision:
        problem += f" at revision {sanitize_line(revision, 100)}"
    is_hub_id = HUB_ID.fullmatch(name) is not None
    if not is_hub_id and any(separator in name for separator in "/\\"):
        problem += ", a path that is not opened, because it comes with the adapter."
    else:
        problem += ", which is not on this machine under that name."
    if not is_hub_id:
        return f"{problem}\nFix: name its folder or its hub id: --base FOLDER, or --base OWNER/NAME. {_COMPARED}"
    fix = f"Fix: name its folder, or allow the download: --base FOLDER, or --base {shown}."
    if _QUANTIZED_COPY.search(name):
        fix += " That is a quantized copy; the base in 16 bits that it was made from can be named too."
    return f"{problem}\n{fix} {_COMPARED}"


_COMPARED = "The digest of the base is compared if the adapter has one, and names and shapes in any case."

"""The base that a user names where an adapter can be named, too."""

import os

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import UnavailableError, UsageError
from lora_chat.models.base_model import LocalBase, find_base
from lora_chat.runs.run_folder import format_runs_hint
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path


def find_named_base(source: str) -> LocalBase:
    """Return the base, which is downloaded once if it is a hub id.

    Raises UsageError for a missing path beside runs, because it is a run with a wrong name rather than a hub id;
    UnavailableError for anything else that does not exist.
    """
    path = expand_user_path(source)
    shown = sanitize_line(source, 300)
    if not os.path.lexists(path) and len(path.parts) > 1 and (hint := format_runs_hint(path.parent)):
        raise UsageError(f"There is no run {shown}.{hint}")
    try:
        return find_base(BaseSection(name=source))
    except UnavailableError as error:
        if path.is_dir():
            raise  # the error names the problem of the folder
        raise UnavailableError(f"There is no run, parcel, adapter or folder {shown}.\n{error}") from error

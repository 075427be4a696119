"""The settings with which the training data of a new recipe is read: its format or columns, from its first rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_chat.config.columns import ColumnsSection
from lora_chat.config.data import DataSection
from lora_chat.data.parsing.formats import detect_format
from lora_chat.data.parsing.prepare_row import RowPreparation
from lora_chat.data.reading.file_types import detect_file_kind
from lora_chat.data.reading.files import read_rows
from lora_chat.data.sources import LocalSource, find_sources
from lora_chat.pipeline.new.column_roles import ColumnRoles, Row, find_column_roles

_FIRST_ROWS = 1000
"""Rows by which columns are chosen."""
_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})
_PACKED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})


@dataclass(frozen=True)
class FoundSource:
    """Training data with the settings that its reading needs."""

    local: LocalSource
    section: DataSection
    roles: ColumnRoles | None = None
    """Columns that were chosen here; None if the rows need none or the user named them."""


def find_source(section: DataSection) -> FoundSource:
    """Return the training data of a section with format or columns, unless the section has one of them.

    Raises DataError for data that does not exist or is never read.
    """
    local = find_sources(section.train_sources)[0]
    if section.format is not None or section.columns is not None:
        return FoundSource(local, section)
    first = local.paths[0]
    if _is_plain_text(first):
        section = section.model_copy(update={"format": "text"})
        return FoundSource(find_sources(section.train_sources)[0], section)
    rows = _read_first_rows(first, local.reading_options.preparation)
    roles = find_column_roles(rows) if _needs_columns(rows) else None
    if roles is None:
        return FoundSource(local, section)
    return with_roles(section, roles)


def with_roles(section: DataSection, roles: ColumnRoles) -> FoundSource:
    """Return the training data of a section that is read by these columns."""
    columns = ColumnsSection.model_validate(roles.as_columns)
    section = section.model_copy(update={"columns": columns})
    return FoundSource(find_sources(section.train_sources)[0], section, roles)


def list_columns(section: DataSection) -> list[str]:
    """Return the names of the columns of data that is in no known format; empty for other data."""
    local = find_sources(section.train_sources)[0]
    rows = _read_first_rows(local.paths[0], local.reading_options.preparation)
    return [*dict.fromkeys(name for row in rows for name in row)] if _needs_columns(rows) else []


def _is_plain_text(path: object) -> bool:
    """Return whether a file is plain text by its name, and no table or JSON by its beginning."""
    if not isinstance(path, Path):
        return False
    suffixes = [suffix for suffix in path.suffixes if suffix.lower() not in _PACKED_SUFFIXES]
    if not suffixes or suffixes[-1].lower() not in _TEXT_SUFFIXES:
        return False
    return detect_file_kind(path, plain_text=True) == "text"


def _read_first_rows(path: object, preparation: RowPreparation) -> list[Row]:
    """Return the first rows that are objects, as the reader sees them."""
    rows: list[Row] = []
    for number, raw in enumerate(read_rows(path)):  # type: ignore[arg-type]
        value = preparation.preview(raw.parse().value)
        if isinstance(value, Mapping):
            rows.append(value)
        if number + 1 >= _FIRST_ROWS:
            break
    return rows


def _needs_columns(rows: list[Row]) -> bool:
    """Return whether rows are in no known format, or are texts with a class."""
    rows = [row for row in rows if any(value not in (None, "") for value in row.values())]
    formats = {detect_format(row) for row in rows}
    if formats == {None}:
        return True
    return formats == {"text"} and any(len(row) > 1 for row in rows)

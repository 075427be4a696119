"""Prepare a row before its format is known: leave out ignored keys and unwanted replies."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.preference import UnwantedRowError, check_wanted, find_pair_keys, take_chosen
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.reading.size_limits import MAX_COLUMNS


@dataclass(frozen=True)
class RowPreparation:
    """Changes of rows that do not depend on their format."""

    named_columns: frozenset[str]
    """Columns that the recipe names, which are never taken for preference data."""
    drop_unwanted: bool
    ignored_keys: Collection[str]

    def apply(self, value: object, data_format: DataFormat | None, notes: RowNotes) -> object:
        """Return a row without ignored keys, and with the chosen reply of a preference pair.

        Raises UnwantedRowError for a row that is left out, and InvalidDialogueError for other preference data.
        """
        if not isinstance(value, Mapping):
            return value
        if len(value) > MAX_COLUMNS:
            raise InvalidDialogueError(f"has more than {MAX_COLUMNS:,} keys")
        ignored = [key for key in value if key in self.ignored_keys]
        notes.add_unused(ignored)
        row = {key: item for key, item in value.items() if key not in ignored} if ignored else value
        check_wanted(row, data_format, self.named_columns, self.drop_unwanted)
        if data_format == "text" or not self.named_columns.isdisjoint(find_pair_keys(row)):
            return row
        return take_chosen(row, self.drop_unwanted, notes)

    def preview(self, value: object) -> object:
        """Return a row as it will be parsed, or unchanged if it will be refused or left out."""
        try:
            return self.apply(value, None, RowNotes())
        except InvalidDialogueError:
            return value

    def find_refusal(self, value: object) -> str | None:
        """Return the reason why a row is refused whatever its format, or None."""
        try:
            self.apply(value, None, RowNotes())
        except UnwantedRowError:
            return None
        except InvalidDialogueError as error:
            return str(error)
        return None

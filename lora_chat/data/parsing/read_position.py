"""The position between two chunks of rows, from which reading can continue."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_chat.config.data import DataFormat
from lora_chat.data.parsing.row_limit import counts_as_row, is_continued
from lora_chat.data.reading.files import RowStart
from lora_chat.data.reading.raw_row import RawRow


@dataclass(frozen=True)
class ReadPosition:
    """The position between two chunks of the files of a source."""

    files: int = 0
    """Number of files before the one that is read."""
    start: RowStart = field(default_factory=RowStart)
    """Position in that file."""
    data_format: DataFormat | None = None
    """Format of that file, if some of its rows were read."""
    left: int | None = None
    """Number of rows that the limit still allows; None without a limit."""
    is_inside_text: bool = False
    """Whether the next row continues a text, which is read to its end."""

    @property
    def is_end(self) -> bool:
        """Return whether the limit allows no further row."""
        return self.left == 0 and not self.is_inside_text

    @property
    def is_valid(self) -> bool:
        """Return whether all numbers can be those of a position."""
        return min(self.files, self.start.rows, self.start.line, self.start.offset or 0, self.left or 0) >= 0

    def after(self, rows: Sequence[RawRow], data_format: DataFormat | None) -> "ReadPosition":
        """Return the position after rows of the same file."""
        if not rows:
            return self
        start = RowStart(self.start.rows + len(rows), rows[-1].line + rows[-1].lines - 1, rows[-1].end)
        left = None if self.left is None else self.left - sum(map(counts_as_row, rows))
        return ReadPosition(self.files, start, data_format, left, is_continued(rows[-1]))

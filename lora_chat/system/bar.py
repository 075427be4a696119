"""A live line with a progress bar on stderr; the only module that imports rich."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lora_chat.system.console import show_messages_with, unfiltered_stderr
from lora_chat.system.sanitize import sanitize_line, sanitize_text


class LiveBar:
    """A line that is redrawn in place, with messages above it."""

    def __init__(self, text: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(file=unfiltered_stderr()),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(sanitize_line(text), total=None)
        self._progress.start()
        show_messages_with(self.print_above)

    def update(self, text: str, completed: int, total: int) -> None:
        """Show the progress of the work."""
        self._progress.update(self._task, description=sanitize_line(text), completed=completed, total=total)

    def print_above(self, text: str) -> None:
        """Print a message above the bar."""
        self._progress.console.print(sanitize_text(text), markup=False, highlight=False, emoji=False)

    def close(self) -> None:
        """Remove the bar."""
        show_messages_with(None)
        self._progress.stop()

"""How a run tells where it is: a bar with the time left in a terminal, plain lines elsewhere."""

import sys
from typing import Any

from spectrax.report.extras import require
from spectrax.report.tables import format_number


class Progress:
    """Reports of one run. Use as a context.

    Args:
        quiet: Report nothing.
        total: Steps of all runs together.

    Example:
        >>> with Progress(quiet=False, total=2) as progress:
        ...     progress.line("baseline: epoch 1")
        baseline: epoch 1
    """

    def __init__(self, *, quiet: bool, total: int) -> None:
        self._quiet = quiet
        self._total = total
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        """Show the bar, where there is a terminal."""
        if not self._quiet and sys.stdout.isatty():
            progress = require("rich.progress", "the progress bar")
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("loss {task.fields[loss]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                speed_estimate_period=120,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total, loss="-")
        return self

    def __exit__(self, *details: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, description: str, done: int, loss: float | None) -> None:
        """Say how many steps of all runs are done, and the last loss."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, description=description, loss=format_number(loss), refresh=False
            )

    def line(self, text: str) -> None:
        """Write a line: above the bar, or as it is."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def show(self, renderable: Any) -> None:
        """Write a table of rich."""
        if not self._quiet:
            # A pipe has no width: 120 columns keep each row of a table on one line.
            console = require("rich.console", "printing tables").Console(width=None if sys.stdout.isatty() else 120)
            console.print(renderable)
            console.print()

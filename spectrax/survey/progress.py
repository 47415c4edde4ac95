"""How a survey tells where it is: a bar with the time left in a terminal, a line for each matrix elsewhere."""

import sys
from typing import Any

from spectrax.report.extras import require
from spectrax.report.spectra import printable


class Progress:
    """Reports of one survey. Use as a context.

    Args:
        quiet: Report nothing.
        total: The work of all matrices, in any unit.
        done: What of it was done before.
    """

    def __init__(self, *, quiet: bool, total: float, done: float) -> None:
        self._quiet, self._total, self._done = quiet, total, done
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        """Show the bar, where there is a terminal."""
        if not self._quiet and sys.stdout.isatty():
            progress = require("rich.progress", "the progress bar")
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                speed_estimate_period=60,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total, completed=self._done)
        return self

    def __exit__(self, *details: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, name: str) -> None:
        """Say which matrix is next."""
        name = printable(name)
        if self._bar is not None:
            self._bar.update(self._task, description=name if len(name) <= 40 else "..." + name[-37:])

    def end(self, line: str, work: float) -> None:
        """Say what was found of a matrix, and how much work it was."""
        if self._bar is not None:
            self._bar.update(self._task, advance=work)
        elif not self._quiet:
            print(line, flush=True)

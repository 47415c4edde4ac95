"""Stopping a run on request: Ctrl-C and SIGTERM are noticed between two steps, not in the middle of one."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """A run was stopped on request, after it had saved a checkpoint.

    It is a `KeyboardInterrupt`, so a notebook stops at it and `except Exception` lets it pass.

    The arguments are attributes of the exception.

    Args:
        directory: The run's directory, which `resume` continues.
        arm: The run that was stopped: "penalty" or "baseline".
        step: How many of its steps were made.
    """

    def __init__(self, directory: Path, arm: str, step: int) -> None:
        super().__init__(f"stopped after step {step} of the run {arm!r}; a checkpoint is in {directory}")
        self.directory, self.arm, self.step = directory, arm, step


class NonFiniteError(ArithmeticError):
    """A run was stopped because a loss or a parameter was not finite.

    The arguments are attributes of the exception.

    Args:
        message: What happened.
        arm: The run: "penalty" or "baseline".
        step: The step at which it happened, counted from 1.
        checkpoint: The last good checkpoint.
    """

    def __init__(self, message: str, arm: str, step: int, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.arm, self.step, self.checkpoint = arm, step, checkpoint


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `requested`, and the second one stops at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Example:
        >>> import os, signal
        >>> with StopRequest() as stop:
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     stop.requested
        True
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

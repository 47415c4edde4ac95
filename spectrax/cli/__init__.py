"""The command line: `spectrax train`, `spectrax landscape` and `spectrax spectrum`."""

from collections.abc import Sequence

from spectrax.cli import commands
from spectrax.cli.options import make_parser

_INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended
_COMMANDS = {"train": commands.train, "landscape": commands.landscape, "spectrum": commands.spectrum}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: 0 when all went well, 1 when a run had to stop, 2 for bad input, 130 after Ctrl-C.

    Example:
        >>> main(["train", "--data", "no-such-file.npz", "--out", "no-such-directory"])
        2
    """
    from spectrax.training import NonFiniteError, TrainingConfig, TrainingInterrupted

    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as exit_request:  # argparse has written the help or the error
        return int(exit_request.code or 0)
    try:
        return _COMMANDS[arguments.command](arguments)
    except TrainingInterrupted as stopped:
        commands.say(
            f"Stopped after step {stopped.step} of the run {stopped.arm!r}; nothing is lost. "
            f"Continue with: spectrax train --resume {stopped.directory}"
        )
        return _INTERRUPTED
    except KeyboardInterrupt:
        directory = getattr(arguments, "resume", None) or getattr(arguments, "out", TrainingConfig.out)
        if arguments.command == "landscape":
            commands.say("Stopped at once. The same command goes on after the last rho that was finished.")
        elif arguments.command == "spectrum":
            commands.say("Stopped at once. The same command goes on after the last matrix that was finished.")
        else:
            commands.say(f"Stopped at once. If the run got as far as a checkpoint: spectrax train --resume {directory}")
        return _INTERRUPTED
    except NonFiniteError as error:
        commands.say(f"spectrax train: stopped: {error}")
        return 1
    except commands.BadInputError as error:
        commands.say(f"spectrax {arguments.command}: error: {error}")
        return 2

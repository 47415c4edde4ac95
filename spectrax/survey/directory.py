"""The directory that a survey writes.

    settings.json    what is measured, of which files: a checksum of all their bytes
    layers.jsonl     a record a matrix, appended when it is finished
    spectrum.json    settings, records and what was left out, written last
    spectrum.html    one page with tables and pictures, which refers to no other file

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity", as `spectrax.report.records` reads them.
Times are in no record, so that those of a survey that was interrupted are those of an unbroken one.
"""

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrax.report import records

try:
    import fcntl
except ImportError:  # of Windows
    fcntl = None

_PROGRAM, _FORMAT = "spectrax spectrum", 1
_PARTIAL = ".partial"  # behind the name of a file that is being written
_SURROGATES = "backslashreplace"  # half characters in names become what JSON writes for them
_FILES = ("settings.json", "layers.jsonl", "spectrum.json", "spectrum.html")


class SurveyDirectory:
    """The files of one survey, which no other process may write until `release`. Use `begin`.

    Args:
        path: The directory, an attribute.
        settings: What is measured, an attribute.
        lock: What `lock_directory` returned.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], lock: int | None) -> None:
        self.path, self.settings = path, settings
        self._release = weakref.finalize(self, _unlock, lock)

    @classmethod
    def begin(cls, path: Path, settings: Mapping[str, Any], /, *, overwrite: bool) -> "SurveyDirectory":
        """Make the directory of a new survey, or take up one with the same settings.

        Args:
            path: The directory.
            settings: What is measured, and a fingerprint of the checkpoint.
            overwrite: Replace another survey that is there; never anything else.

        Returns:
            The directory.

        Raises:
            FileExistsError: If the directory holds a survey with other settings and `overwrite` is False, or files of
                anybody else; or if another process is writing it.
        """
        settings = records.from_json(records.to_json(settings))
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; a survey writes a directory")
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_directory(path)
        try:
            cls._make(path, settings, overwrite=overwrite)
        except BaseException:
            _unlock(lock)
            raise
        return cls(path, settings, lock)

    @staticmethod
    def _make(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write the settings, unless they are there."""
        unfinished = [name + _PARTIAL for name in _FILES]  # which a process that was killed may have left
        if any(entry.name not in unfinished for entry in path.iterdir()):
            found = _settings_of(path)
            differing = [
                name for name in settings if records.to_json(found.get(name)) != records.to_json(settings[name])
            ]
            if not differing:
                return
            if not overwrite:
                shown = "; ".join(f"{name}: {found.get(name)!r}, not {settings[name]!r}" for name in differing)
                raise FileExistsError(
                    f"{path} holds a survey with other settings ({shown}): choose another directory, or replace it "
                    "with --overwrite"
                )
            for name in _FILES[1:]:  # and the settings are replaced below, so that at no time there are none
                (path / name).unlink(missing_ok=True)
        content = {"program": _PROGRAM, "format": _FORMAT, "settings": settings}
        write(path / "settings.json", records.to_json(content, indent=2) + "\n")

    def release(self) -> None:
        """Let others write the directory."""
        self._release()

    def finished(self) -> dict[str, dict[str, Any]]:
        """Read the records that are there by their names, and drop a last one that was cut off.

        Returns:
            The records by the names of the matrices.

        Raises:
            ValueError: If the file is damaged elsewhere.
        """
        file = self.path / "layers.jsonl"
        if not file.is_file():
            return {}
        found = records.read_records(file)
        for record in found:
            if not {"name", "shape", "finite"} <= set(record):
                raise ValueError(
                    f"{file} holds a record without a name, a shape and whether it is finite: it is damaged; start "
                    "anew in another directory"
                )
        write(file, records.to_lines(found))  # so that what follows begins a line
        return {named["name"]: named for named in map(_with_name, found)}

    def append(self, record: Mapping[str, Any], /) -> dict[str, Any]:
        """Append a record, and return it as it will be read."""
        line = records.to_json(record)
        with (self.path / "layers.jsonl").open("a", encoding="utf-8", errors=_SURROGATES) as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return _with_name(records.from_json(line))

    def conclude(self, result: Mapping[str, Any], page: str, /) -> None:
        """Write `spectrum.json` and `spectrum.html`."""
        write(self.path / "spectrum.json", records.to_json(result, indent=1) + "\n")
        write(self.path / "spectrum.html", page)


def write(path: Path, text: str) -> None:
    """Write a file so that it is at every moment the old one or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w", encoding="utf-8", errors=_SURROGATES) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def lock_directory(path: Path) -> int | None:
    """Keep other processes out of a directory until this one ends or lets go.

    Args:
        path: The directory.

    Returns:
        An open file descriptor, or None where there are no such locks.

    Raises:
        FileExistsError: If another process holds the directory.
    """
    if fcntl is None:
        return None
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise FileExistsError(
            f"another survey is writing {path}: wait until it has finished, or choose another directory"
        ) from error
    except OSError:  # a file system without locks
        os.close(lock)
        return None
    return lock


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _with_name(record: dict[str, Any]) -> dict[str, Any]:
    """Give back its name to the record of an array that is called "NaN" or "Infinity", which were read as numbers."""
    return record | {"name": records.strict(record["name"])}


def _settings_of(path: Path) -> dict[str, Any]:
    file = path / "settings.json"
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name.removesuffix(_PARTIAL) not in _FILES)
    try:
        content = records.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        content = {}
    known = content.get("program") == _PROGRAM and content.get("format") == _FORMAT
    if foreign or not known or not isinstance(content.get("settings"), dict):
        what = f" ({', '.join(foreign[:3])})" if foreign else ""
        raise FileExistsError(
            f"{path} holds files that are no survey of this version of {_PROGRAM}{what}: choose another directory"
        )
    return content["settings"]

"""The directory that a survey writes.

    settings.json    what is measured, of which files: a checksum of all their bytes
    layers.jsonl     a record a matrix, appended when it is finished
    spectrum.json    settings, records and what was left out, written last
    spectrum.html    one page with tables and pictures, which refers to no other file

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity", as `spectrax.report.records` reads them.
Times are in no record, so that those of a survey that was interrupted are those of an unbroken one.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrax.report import records

_PROGRAM, _FORMAT = "spectrax spectrum", 1
_FILES = ("settings.json", "layers.jsonl", "spectrum.json", "spectrum.html")


class SurveyDirectory:
    """The files of one survey. Use `begin`; the arguments are attributes.

    Args:
        path: The directory.
        settings: What is measured.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings

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
                anybody else.
        """
        settings = records.from_json(records.to_json(settings))
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; a survey writes a directory")
        if path.exists() and any(path.iterdir()):
            found = _settings_of(path)
            differing = [name for name in settings if found.get(name) != settings[name]]
            if not differing:
                return cls(path, settings)
            if not overwrite:
                shown = "; ".join(f"{name}: {found.get(name)!r}, not {settings[name]!r}" for name in differing)
                raise FileExistsError(
                    f"{path} holds a survey with other settings ({shown}): choose another directory, or replace it "
                    "with --overwrite"
                )
            for name in _FILES:
                (path / name).unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        content = {"program": _PROGRAM, "format": _FORMAT, "settings": settings}
        write(path / "settings.json", records.to_json(content, indent=2) + "\n")
        return cls(path, settings)

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
        if not all(isinstance(record.get("name"), str) for record in found):
            raise ValueError(f"{file} holds records without a name: it is damaged; start anew with --overwrite")
        write(file, records.to_lines(found))  # so that what follows begins a line
        return {record["name"]: record for record in found}

    def append(self, record: Mapping[str, Any], /) -> dict[str, Any]:
        """Append a record, and return it as it will be read."""
        line = records.to_json(record)
        with (self.path / "layers.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return records.from_json(line)

    def conclude(self, result: Mapping[str, Any], page: str, /) -> None:
        """Write `spectrum.json` and `spectrum.html`."""
        write(self.path / "spectrum.json", records.to_json(result, indent=1) + "\n")
        write(self.path / "spectrum.html", page)


def write(path: Path, text: str) -> None:
    """Write a file so that it is at every moment the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _settings_of(path: Path) -> dict[str, Any]:
    file = path / "settings.json"
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name.removesuffix(".partial") not in _FILES)
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

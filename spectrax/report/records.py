"""Records as strict JSON: one object a line, read back as it was written.

JSON has no NaN and no infinities, and Python's own writer puts bare `NaN` into its output, which other readers refuse.
Here the three are written as the strings "NaN", "Infinity" and "-Infinity", which `float` understands, and read back as
numbers. A float is written with the shortest digits that give it back, so a record survives the round trip bit by bit.
"""

import json
import math
import numbers
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict(value: Any) -> Any:
    """Turn nested dicts, sequences, arrays and scalars into what strict JSON can hold.

    Args:
        value: Nested mappings, sequences, NumPy or JAX arrays, scalars, strings, paths, booleans or None.

    Returns:
        The same made of dicts, lists, strings, ints, finite floats, booleans and None; a number that is not finite
        becomes the string "NaN", "Infinity" or "-Infinity".

    Raises:
        TypeError: If something else is met, naming its type.

    Example:
        >>> strict({"loss": float("nan"), "steps": (1, 2)})
        {'loss': 'NaN', 'steps': [1, 2]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(name): strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    if hasattr(value, "__array__"):
        return strict(np.asarray(value).tolist())
    raise TypeError(f"a record holds numbers, strings, lists and dicts, got {type(value).__name__}")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write a value as strict JSON.

    Args:
        value: What `strict` takes.
        indent: Spaces of indentation, or None for one line.

    Returns:
        The text, without a line break at its end.

    Example:
        >>> to_json({"sigma_min": 0.5, "condition_number": float("inf")})
        '{"sigma_min": 0.5, "condition_number": "Infinity"}'
    """
    return json.dumps(strict(value), allow_nan=False, indent=indent, ensure_ascii=False)


def from_json(text: str) -> Any:
    """Read what `to_json` wrote, with "NaN", "Infinity" and "-Infinity" as numbers again.

    Args:
        text: One JSON value.

    Returns:
        Nested dicts, lists and scalars.

    Example:
        >>> from_json('{"condition_number": "Infinity"}')
        {'condition_number': inf}
    """
    return _numbers(json.loads(text))


def read_records(path: str | Path) -> list[dict[str, Any]]:
    r"""Read a file of JSON lines.

    A last line that was cut off, as a killed process leaves it, is dropped.

    Args:
        path: The file.

    Returns:
        One dict a line.

    Raises:
        ValueError: If a line that is not the last one is not a JSON object.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "records.jsonl")
        ...     _ = file.write_text('{"step": 1}\n{"step": ')
        ...     read_records(file)
        [{'step': 1}]
    """
    lines = Path(path).read_bytes().split(b"\n")  # as bytes: a line may have been cut off within a letter
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = from_json(line.decode())
        except ValueError as error:
            if number == len(lines):  # what follows the last line break: an unfinished line
                break
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, must be a JSON object, got {type(record).__name__}")
        records.append(record)
    return records


def to_lines(records: Iterable[Mapping[str, Any]]) -> str:
    r"""Write records as JSON lines, each ended by a line break.

    Args:
        records: The records.

    Returns:
        The text.

    Example:
        >>> to_lines([{"step": 1}, {"step": 2}])
        '{"step": 1}\n{"step": 2}\n'
    """
    return "".join(to_json(record) + "\n" for record in records)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    return value

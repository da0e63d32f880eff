"""CSV files that a person gives: which label a photo has, which photos to leave out."""

import csv
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from googlenet_train.data.names import printable
from googlenet_train.errors import ExitCode, UserError


def read_labels(table: str, root: Path) -> list[tuple[str, str]]:
    """(path below `root`, label) of each line of a CSV file with the columns path and label.

    Raises UserError (DATA), naming file and line, for a line that is not whole, a path that stands
    twice, leaves `root` or is no file.
    """
    lines: dict[str, int] = {}
    rows = []
    for line, (written, label) in _read(table, ("path", "label")):
        path = _below(written, root)
        if path is None:
            raise _refusal(table, line, f"'{written}' does not lie in '{root}' (data.train)")
        if path in lines:
            raise _refusal(table, line, f"'{written}' stands twice, first in line {lines[path]}")
        if not os.path.isfile(root / path):  # noqa: PTH113  half of Path's time
            raise _refusal(
                table,
                line,
                f"no file '{printable(str(root / path))}'; a path starts from data.train"
                + (", and has / between folders" if "\\" in path else ""),
            )
        lines[path] = line
        rows.append((path, label))
    if not rows:
        raise _refusal(table, 1, "no photos below the line with the column names")
    return rows


def read_paths(table: str, root: Path) -> dict[str, int]:
    """Path below `root` -> line, of each line of a CSV file with a column path.

    A path that does not lie below `root` is kept as it is written. Raises UserError (DATA), naming
    file and line, for a line that is not whole.
    """
    return {_below(written, root) or written: line for line, (written,) in _read(table, ("path",))}


def _below(written: str, root: Path) -> str | None:
    """The path from `root`, of one written so, or beginning with `root`, or in full."""
    path = posixpath.normpath(written)
    for start in (str(root), str(root.resolve())):
        if path.startswith(f"{posixpath.normpath(start)}/"):
            path = path[len(posixpath.normpath(start)) + 1 :]
            break
    return None if path.startswith(("/", "../")) or path in (".", "..") else path


def _read(table: str, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(line, values of these columns) of each row; other columns are passed over."""
    try:
        # "-sig": Excel begins a file with a mark. Names need not be UTF-8.
        with Path(table).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if "\0" in file.read(1000):
                raise _refusal(table, 1, "is no text, or not UTF-8; save it as CSV in UTF-8")
            file.seek(0)
            return _rows(table, file, columns)
    except OSError as error:
        raise UserError(f"{table}: cannot be read: {error.strerror}", ExitCode.DATA) from None


def _rows(table: str, file: TextIO, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(file, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if head.count(name) != 1]
        if missing:
            raise _refusal(
                table,
                1,
                f"the first line must name the columns, {','.join(columns)}; it is "
                f"'{','.join(head)[:60]}'",
            )
        places = [head.index(name) for name in columns]
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != len(head):
                raise _refusal(
                    table,
                    reader.line_num,
                    f"{len(row)} columns, but the first line names {len(head)}; a name with a "
                    "comma stands in double quotes",
                )
            values = [row[place].strip() for place in places]
            for name, value in zip(columns, values, strict=True):
                if not value:
                    raise _refusal(table, reader.line_num, f"the column {name} is empty")
            rows.append((reader.line_num, values))
    except csv.Error as error:
        raise _refusal(table, reader.line_num, f"is no CSV ({error})") from None
    return rows


def _refusal(table: str, line: int, what: str) -> UserError:
    return UserError(f"{table}:{line}: {what}", ExitCode.DATA)

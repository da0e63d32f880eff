"""CSV files that a person gives: which label a photo has, which photos to leave out."""

import csv
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from googlenet_train.data.names import class_name, printable
from googlenet_train.errors import ExitCode, UserError


def read_labels(table: str, root: Path) -> list[tuple[str, str]]:
    """(path below `root`, label) of each line of a CSV file with the columns path and label.

    Raises UserError (DATA), naming file and line, for a line that is not whole, a label that is not
    UTF-8, a path that stands twice, leaves `root` or is no file.
    """
    lines: dict[str, int] = {}
    rows = []
    for line, (written, label) in _read(table, ("path", "label")):
        path = _below(written, root)
        if not _is_text(label):
            raise _not_utf8(table, line, label)
        if path is None:
            raise _refusal(table, line, f"'{written}' does not lie in '{root}' (data.train)")
        if path in lines:
            raise _refusal(table, line, f"'{written}' stands twice, first in line {lines[path]}")
        if not os.path.isfile(root / path):  # noqa: PTH113  half of Path's time
            if not _is_text(path):
                raise _not_utf8(table, line, path)
            raise _refusal(
                table,
                line,
                f"no file '{printable(str(root / path))}'; a path starts from data.train"
                + (", and has / between folders" if "\\" in path else ""),
            )
        lines[path] = line
        rows.append((path, class_name(label)))
    if not rows:
        raise _refusal(table, 1, "no photos below the line with the column names")
    return rows


def read_paths(table: str, root: Path) -> dict[str, int]:
    """Path below `root` -> line, of each line of a CSV file with a column path.

    A path that does not lie below `root` is kept as it is written. Raises UserError (DATA), naming
    file and line, for a line that is not whole, and for a path that is neither UTF-8 nor a file.
    """
    paths = {}
    for line, (written,) in _read(table, ("path",)):
        path = _below(written, root) or written
        # In a shard a name need not be UTF-8 either, and none of them can be looked for here.
        if not _is_text(path) and root.is_dir() and not _exists(root / path, Path(written)):
            raise _not_utf8(table, line, path)
        paths[path] = line
    return paths


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
    other = _other_form(file.readline(), columns)
    file.seek(0)
    reader = csv.reader(file, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        places = [_place(table, head, columns, name, other) for name in columns]
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
        what = other if other and reader.line_num == 1 else f"is no CSV ({error})"
        raise _refusal(table, reader.line_num, what) from None
    return rows


def _other_form(first: str, columns: Sequence[str]) -> str | None:
    """What a first line says that no column names can be read from, where it is of a known kind."""
    bare = first.strip().replace('"', "")
    if bare.lower().startswith("sep="):
        return f"'{bare[:5]}' is a line for Excel alone; delete it, and separate the columns by ','"
    for mark, called in ((";", "';'"), ("\t", "a tab")):
        if mark in bare and set(columns) <= {name.strip().lower() for name in bare.split(mark)}:
            return (
                f"the columns are separated by {called}, and have to be by ','; replace it in all "
                "lines, and put names with a comma in double quotes"
            )
    return None


def _place(
    table: str, head: Sequence[str], columns: Sequence[str], name: str, other: str | None
) -> int:
    """Which column has this name, in any case where none has it exactly."""
    places = [i for i, one in enumerate(head) if one == name]
    places = places or [i for i, one in enumerate(head) if one.lower() == name]
    if len(places) > 1:
        raise _refusal(table, 1, f"the first line names the column {name} twice; rename one")
    if not places:
        shown = printable(",".join(head)[:60])
        what = f"the first line must name the columns, {','.join(columns)}; it is '{shown}'"
        raise _refusal(table, 1, other or what)
    return places[0]


def _is_text(value: str) -> bool:
    """Whether this is UTF-8 in the file, as the name of a photo need not be."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exists(*paths: Path) -> bool:
    return any(os.path.lexists(path) for path in paths)


def _not_utf8(table: str, line: int, value: str) -> UserError:
    return _refusal(
        table,
        line,
        f"'{printable(value)}' is not UTF-8. Save the table as UTF-8 (in Excel: as 'CSV UTF-8')",
    )


def _refusal(table: str, line: int, what: str) -> UserError:
    return UserError(f"{table}:{line}: {what}", ExitCode.DATA)

"""What people call the classes, where the folders have other names.

A class is known by its folder everywhere in the program; its name is for people to read.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from googlenet_train.data.names import class_name
from googlenet_train.errors import ExitCode, UserError

FILE = "classes.txt"
_IMAGENET = Path(__file__).parent.parent / "assets" / "imagenet-classes.txt"
_WORDNET_ID = re.compile(r"n\d{8}")


def class_names(classes: Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """A name for each class: from classes.txt in `folder`, from ImageNet, or its own.

    A line of classes.txt is `CLASS NAME`, with a tab or blanks between, for every class and in any
    order; or the lines are names alone, as many as classes and in the classes' sorted order.
    Classes that are all WordNet ids (n01440764) get the names that torchvision gives ImageNet's.
    Raises UserError (DATA), naming file and line, for a classes.txt that is neither.
    """
    path = folder / FILE if folder else None
    if path and path.is_file():
        return _from_lines(path, path.read_bytes(), classes)
    if all(map(_WORDNET_ID.fullmatch, classes)):
        return tuple(_imagenet().get(name, name) for name in classes)
    return tuple(classes)


def _from_lines(path: Path, content: bytes, classes: Sequence[str]) -> tuple[str, ...]:
    text = class_name(_text(path, content))
    classes = [class_name(name) for name in classes]  # shards may still spell them otherwise
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    known = set(classes)
    entries = [(i, entry) for i, line in lines if (entry := _entry(line, known))]
    found = dict(entry for _, entry in entries)
    if not found and len(lines) == len(classes):
        entries = [(i, (name, line)) for name, (i, line) in zip(classes, lines, strict=True)]
        found = dict(entry for _, entry in entries)
    missing = [name for name in classes if name not in found]
    if missing:
        stray = [line for _, line in lines if not _entry(line, known)]
        near = get_close_matches(missing[0], stray, n=1, cutoff=0.4)
        hint = f"; did '{near[0]}' mean it?" if near else "."
        raise UserError(
            f"{path}: no line for class '{missing[0]}'{hint} Its {len(lines)} lines are to be "
            f"'CLASS NAME' for each of the {len(classes)} classes, or {len(classes)} names in the "
            "classes' sorted order",
            ExitCode.DATA,
        )
    lines_of: dict[str, int] = {}
    for i, (name, called) in entries:
        other = lines_of.setdefault(called, i)
        if other != i and found[name] == called:
            raise UserError(
                f"{path}:{i}: '{called}' is the name of two classes, first in line {other}. Give "
                "each another one",
                ExitCode.DATA,
            )
    return tuple(found[name] for name in classes)


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: is not UTF-8. Save the file as UTF-8 (in Excel: as 'CSV UTF-8')",
            ExitCode.DATA,
        ) from None


def _entry(line: str, classes: set[str]) -> tuple[str, str] | None:
    """(class, name) of a line that begins with a class; a class alone is its own name."""
    if line in classes:
        return line, line
    ends = [i for i, letter in enumerate(line) if letter in " \t" and line[:i] in classes]
    return (line[: ends[-1]], line[ends[-1] :].strip()) if ends else None


@cache
def _imagenet() -> Mapping[str, str]:
    lines = _IMAGENET.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)

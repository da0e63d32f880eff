"""From a config file and the command line's overrides to a Config, or to all mistakes at once.

A mistake is one line: where it is (file and line, or the command line), the dotted key, what is
wrong, and how to mend it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from googlenet_train.config import Config
from googlenet_train.config.mistakes import unknown, wrong
from googlenet_train.config.text import (
    difference,
    dump,
    flat,
    is_part,
    nested,
    parts,
    properties,
    resolved,
    sections,
)
from googlenet_train.config.yaml_strict import NotYaml, compose, pairs, plain
from googlenet_train.errors import ExitCode, UserError

# What is done with a config once it is loaded stands beside `load` for those who use both.
__all__ = ["Loaded", "difference", "dump", "flat", "load", "resolved", "shipped_configs"]


@dataclass(frozen=True)
class Loaded:
    """A config, and where each of its settings was written."""

    config: Config
    path: Path
    shipped: bool  # there was no such file here, and the program comes with one of that name
    places: Mapping[str, str]  # dotted key -> "imagenet.yaml:7"; defaults are absent
    called: str = ""  # what the run is named after, where that is not the file

    @property
    def name(self) -> str:
        """What a run is named after: the file's name without its ending, unless it is `called`."""
        return self.called or self.path.stem

    def where(self, key: str) -> str:
        """Where the value of a dotted key was written: "imagenet.yaml:7 data.train".

        For an override "command line data.train", for a default "default of data.train". Raises
        KeyError for a key that does not exist.
        """
        if key not in properties():
            raise KeyError(key)
        return f"{self.places[key]} {key}" if key in self.places else f"default of {key}"


class _Place(NamedTuple):
    """Where a key stands, and for a list the lines of its items."""

    source: str
    line: float = math.inf  # the command line: after every line of the file
    items: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.source if self.line == math.inf else f"{self.source}:{self.line}"

    def item(self, index: int) -> "_Place":
        return self._replace(line=self.items[index]) if self.items else self


@dataclass
class _Draft:
    """What has been read so far, and what was wrong with it."""

    values: dict[str, object] = field(default_factory=dict)  # by dotted key
    places: dict[str, _Place] = field(default_factory=dict)  # by dotted key or section
    mistakes: list[tuple[float, str]] = field(default_factory=list)  # (line, message)
    unread: set[str] = field(default_factory=set)  # keys and sections without a usable value

    def refuse(self, place: _Place, key: str, what: str) -> None:
        name = key if key.isprintable() else json.dumps(key)  # a quoted key may hold line breaks
        self.mistakes.append((place.line, f"{place} {name}: {what}"))

    def read(self, key: str, place: _Place, node: yaml.Node) -> None:
        """Take the value of a key that exists."""
        before = len(self.mistakes)
        value = plain(node, lambda part, what: self.refuse(_moved(place, part), key, what))
        if isinstance(node, yaml.SequenceNode):
            place = place._replace(items=tuple(_moved(place, item).line for item in node.value))
        if isinstance(node, yaml.MappingNode) and parts(key):
            for part, _ in node.value:
                self.places[f"{key}.{part.value}"] = _moved(place, part)
        self.places[key] = place
        self.values.pop(key, None)
        self.unread.discard(key)
        if len(self.mistakes) == before:
            self.values[key] = value
        else:
            self.unread.add(key)

    def read_part(self, key: str, part: str, place: _Place, node: yaml.Node) -> None:
        """Take the value of a part of a key, and leave its other parts as they are."""
        before = self.values.get(key)
        value = plain(node, lambda _, what: self.refuse(place, f"{key}.{part}", what))
        self.values[key] = {**(before if isinstance(before, dict) else {}), part: value}
        self.places[key] = self.places[f"{key}.{part}"] = place


def shipped_configs() -> Path:
    """The folder of the configs that the program comes with: in the wheel, or in the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load(path_or_name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a config file, or the shipped one if a bare name is no file here; apply overrides.

    Each override is "section.key=VALUE" with VALUE as in YAML. Raises UserError (USAGE) with one
    line for each mistake in the file and in the overrides.
    """
    path, raw, shipped = _find(path_or_name)
    source = path.name if shipped else path_or_name
    draft = _Draft()
    _read_file(draft, source, raw)
    _read_overrides(draft, overrides)
    config = _validate(draft, source)
    if config is None or draft.mistakes:
        draft.mistakes.sort(key=lambda mistake: mistake[0])
        raise UserError("\n".join(message for _, message in draft.mistakes), ExitCode.USAGE)
    places = {key: str(place) for key, place in draft.places.items() if key in properties()}
    return Loaded(config, path, shipped, places)


def _find(given: str) -> tuple[Path, bytes, bool]:
    """(path, contents, shipped?) of a config given by its path or by a shipped config's name."""
    path = Path(given)
    try:
        return path, path.read_bytes(), False
    except IsADirectoryError:
        message = f"{given or '(empty)'}: a folder, not a config file. Give the .yaml file itself."
        raise UserError(message, ExitCode.USAGE) from None
    except (FileNotFoundError, NotADirectoryError):
        shipped = {file.name: file for file in sorted(shipped_configs().glob("*.yaml"))}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{given}: cannot be read: {reason}.", ExitCode.USAGE) from None

    name = given if given.endswith(".yaml") else f"{given}.yaml"
    if name in shipped:
        return shipped[name], shipped[name].read_bytes(), True
    here = [str(path.parent / file.name) for file in sorted(path.parent.glob("*.y*ml"))]
    near = get_close_matches(name, [*here, *shipped], 1)
    near = near or get_close_matches(Path(name).name, shipped, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{given}: no such config file.{hint} The program comes with {', '.join(shipped)}.",
        ExitCode.USAGE,
    )


def _read_file(draft: _Draft, source: str, raw: bytes) -> None:
    """Put the settings of a file into `draft`. Raises UserError where it is no YAML at all."""
    try:
        root = compose(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"{source}:{line}: not UTF-8 text. Save the file as UTF-8."
        raise UserError(message, ExitCode.USAGE) from None
    except NotYaml as error:
        raise UserError(f"{source}:{error.line}: {error}.", ExitCode.USAGE) from None

    for section, place, body in _entries(draft, _Place(source, 1), "", root):
        if section not in sections():
            draft.refuse(place, section, _unknown_section(section))
            continue
        draft.places[section] = place
        for name, at, node in _entries(draft, place, section, body):
            key = f"{section}.{name}"
            if key in properties():
                draft.read(key, at, node)
            else:
                draft.refuse(at, key, _dotted(key) or unknown(key))


def _entries(
    draft: _Draft, place: _Place, section: str, node: yaml.Node | None
) -> list[tuple[str, _Place, yaml.Node]]:
    """(name, place, value) of what a section holds, or the whole file if `section` is ""."""
    if node is None or node.tag.endswith(":null"):
        return []  # a section whose keys are all commented out is an empty one
    if not isinstance(node, yaml.MappingNode) or not node.tag.endswith(":map"):
        draft.unread.add(section)
        what = "must hold lines of the form KEY: VALUE, and does not."
        draft.refuse(_moved(place, node), section or "the config", what)
        return []
    prefix = f"{section}." if section else ""
    found = pairs(
        node,
        lambda key, what: draft.refuse(_moved(place, key), f"{prefix}{key.value}", what),
    )
    return [(name, _moved(place, key), value) for name, key, value in found]


def _unknown_section(name: str) -> str:
    if name in properties():
        section, _, key = name.partition(".")
        return f"a dotted key is for the command line. Here write {key} in section {section}."
    return _dotted(name) or unknown(name)


def _dotted(key: str) -> str | None:
    """For a part of a key that is written in a file as on the command line."""
    if not is_part(key):
        return None
    section, name, part = key.split(".")
    return (
        f"a dotted key is for the command line. Here write {name}: {{{part}: ...}} in section "
        f"{section}."
    )


def _moved(place: _Place, node: yaml.Node) -> _Place:
    """`place` at the line of `node`, unless it is the command line."""
    return place if place.line == math.inf else place._replace(line=node.start_mark.line + 1)


def _read_overrides(draft: _Draft, overrides: Sequence[str]) -> None:
    """Put "section.key=VALUE" settings into `draft`, over those of the file."""
    place = _Place("command line")
    given = set()
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not key:
            draft.refuse(place, override, "must be KEY=VALUE, such as optimizer.lr=0.1.")
        elif key in sections():
            first = next(known for known in properties() if known.startswith(f"{key}."))
            draft.refuse(place, override, f"{key} is a section; set its keys, such as {first}=...")
        elif key not in properties() and not is_part(key):
            draft.refuse(place, override, unknown(key))
        elif key in given:
            draft.refuse(place, override, f"{key} is given twice. Leave one out.")
        elif (node := _override_value(draft, place, override, text)) is not None:
            if key in properties():
                draft.read(key, place, node)
            else:
                outer, _, part = key.rpartition(".")
                draft.read_part(outer, part, place, node)
        given.add(key)


def _override_value(draft: _Draft, place: _Place, override: str, text: str) -> yaml.Node | None:
    try:
        node = compose(text)
    except NotYaml as error:
        draft.refuse(place, override, f"{error}.")
        return None
    if node is None:
        draft.refuse(place, override, "has no value. Write null for none, '\"\"' for empty text.")
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.value != text:
        # A # begins a comment in YAML; on a command line it is a part of a name.
        draft.refuse(place, override, "would be cut short. Put the value in quotes, '\"...\"'.")
        return None
    return node


def _validate(draft: _Draft, source: str) -> Config | None:
    """The Config, or None with its mistakes added to `draft`."""
    try:
        return Config.model_validate(nested(draft.values))
    except ValidationError as error:
        explained = set()
        for entry in error.errors():
            section, name, *rest = (str(entry["loc"][0]), *entry["loc"][1:])
            key = f"{section}.{name}"
            # A list that is too short is "missing" at the index that it does not have. Anything
            # else in `rest` names a member of a union, each of which has an entry of its own.
            index = rest[0] if rest and isinstance(rest[0], int) else None
            if entry["type"] == "missing":
                index = None
            places = [key, section]
            if rest and isinstance(rest[0], str) and parts(key):
                key = f"{key}.{rest[0]}"
                places.insert(0, key)
            if (key, index) in explained or draft.unread & {"", *places}:
                continue
            explained.add((key, index))
            found = (draft.places[name] for name in places if name in draft.places)
            place = next(found, _Place(source, 1))
            if index is None:
                draft.refuse(place, key, wrong(key, None, entry))
            else:
                draft.refuse(place.item(index), f"{key}[{index}]", wrong(key, index, entry))
        return None

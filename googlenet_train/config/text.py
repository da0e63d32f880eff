"""A config as text: YAML that loads again, every key with its reason, the schema for editors."""

import json
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from googlenet_train.config import Config
from googlenet_train.config.yaml_strict import value_text

Schema = dict[str, Any]


@cache
def schema() -> Schema:
    """The JSON Schema (2020-12) of a config file."""
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    # Editors show the text beside the reference, not the one behind it.
    for section, definition in _definitions(whole).items():
        whole["properties"][section]["description"] = definition["description"]
    return whole


def _definitions(whole: Schema) -> dict[str, Schema]:
    """Section -> the schema of that section, in order."""
    return {
        section: whole["$defs"][reference["$ref"].rpartition("/")[2]]
        for section, reference in whole["properties"].items()
    }


@cache
def properties() -> Mapping[str, Schema]:
    """Dotted key -> JSON Schema of that key, in order."""
    return {
        f"{section}.{name}": _followed(described)
        for section, definition in _definitions(schema()).items()
        for name, described in definition["properties"].items()
    }


def _followed(described: Schema) -> Schema:
    """A key's schema with what it refers to in its place."""
    if "anyOf" not in described:
        return described
    definitions = schema()["$defs"]
    choices = [
        definitions[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        for choice in described["anyOf"]
    ]
    return {**described, "anyOf": choices}


def parts(key: str) -> Mapping[str, Schema]:
    """Name -> JSON Schema of each part of a dotted key whose value is a mapping of fixed names."""
    for choice in properties()[key].get("anyOf", []):
        if "properties" in choice:
            found: Mapping[str, Schema] = choice["properties"]
            return found
    return {}


def is_part(key: str) -> bool:
    """Whether `key` is such a part: "schedule.image_size.from"."""
    outer, _, name = key.rpartition(".")
    return outer in properties() and name in parts(outer)


def sections() -> list[str]:
    """The names of the sections, in order."""
    return list(Config.model_fields)


def flat(config: Config) -> dict[str, object]:
    """Dotted key -> value, in order; lists as lists."""
    return {
        f"{section}.{name}": value
        for section, entries in config.model_dump(mode="json", by_alias=True).items()
        for name, value in entries.items()
    }


def nested(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The opposite of `flat`: section -> key -> value. Every section is there, if only empty."""
    tree: dict[str, dict[str, object]] = {section: {} for section in sections()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return tree


def resolved(config: Config, values: Mapping[str, object]) -> Config:
    """`config` with these dotted keys set, as when `auto` has become a number.

    Raises KeyError for an unknown section, pydantic.ValidationError for an unknown key or a wrong
    value: both are mistakes of the caller.
    """
    return Config.model_validate(nested(flat(config) | dict(values)))


def difference(old: Config, new: Config) -> list[tuple[str, object, object]]:
    """(dotted key, old value, new value) of every key that differs, in order."""
    after = flat(new)
    return [(key, before, after[key]) for key, before in flat(old).items() if before != after[key]]


def dump(config: Config) -> str:
    """All of `config` as YAML, one key a line; loading it gives an equal Config."""
    lines: list[str] = []
    for section, entries in nested(flat(config)).items():
        lines.append(f"{section}:")
        lines += [f"  {name}: {value_text(value)}" for name, value in entries.items()]
    return "\n".join(lines) + "\n"


def essentials(config: Config) -> str:
    """The settings that differ from their defaults, one section a line, as YAML."""
    defaults = {key: entry.get("default") for key, entry in properties().items()}
    differing = {key: value for key, value in flat(config).items() if value != defaults[key]}
    return "".join(
        f"  {section}: {value_text(entries)}\n"
        for section, entries in nested(differing).items()
        if entries
    )


def expected(described: Schema) -> str:
    """What a key's JSON Schema asks for, in words: "a number > 0 or null"."""
    if "anyOf" in described:
        return " or ".join(expected(choice) for choice in described["anyOf"])
    if "const" in described:
        return str(described["const"])
    if "enum" in described:
        *most, last = described["enum"]
        return f"{', '.join(most)} or {last}"
    if described["type"] == "array":
        items = described.get("prefixItems") or [described["items"]]
        count = f"{len(items)} numbers" if "prefixItems" in described else "numbers"
        return f"a list of {count}{_bounds(items[0])}"
    if "properties" in described:
        names = (f"{name}: {expected(part)}" for name, part in described["properties"].items())
        return f"{{{', '.join(names)}}}"
    if described["type"] == "object":
        return f"{{name: {expected(described['additionalProperties'])}, ...}}"
    noun = {
        "integer": "a whole number",
        "number": "a number",
        "string": "some text",
        "boolean": "true or false",
        "null": "null",
    }
    return noun[described["type"]] + _bounds(described)


def _bounds(described: Schema) -> str:
    words = {
        "exclusiveMinimum": ">",
        "minimum": ">=",
        "exclusiveMaximum": "<",
        "maximum": "<=",
    }
    # older versions of pydantic write a float's bound 0 as 0.0
    found = [
        f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
        for word, sign in words.items()
        if (bound := described.get(word)) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def defaults_text() -> str:
    """Every key with its default and its reason, as a config file.

    It lacks only data.train, which has no default and stands there as a comment.
    """
    mark = "  # "
    lines = [
        "# Every key of a config, with its default and the reason for it.",
        "# A file of your own needs data.train and whatever differs from here.",
    ]
    for section, definition in _definitions(schema()).items():
        lines += ["", f"# {definition['description']}", f"{section}:"]
        for name, entry in definition["properties"].items():
            reason = entry["description"]
            reasons = [reason, f"Allowed: {expected(properties()[f'{section}.{name}'])}."]
            inside = parts(f"{section}.{name}")
            reasons += [f"{part}: {inside[part]['description']}" for part in inside]
            for text in reasons:
                lines += textwrap.wrap(text, 98, initial_indent=mark, subsequent_indent=mark)
            if "default" in entry:
                lines.append(f"  {name}: {value_text(entry['default'])}")
            else:
                lines.append(f"{mark}{name}: photos/train")
            lines.append("")
    return "\n".join(lines)


def schema_text() -> str:
    """The JSON Schema of a config file, for editors that complete and check as one types."""
    return json.dumps(schema(), indent=2) + "\n"

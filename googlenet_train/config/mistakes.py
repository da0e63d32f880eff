"""What is wrong with a setting and how to mend it, in one line."""

import json
import math
from difflib import get_close_matches

from pydantic_core import ErrorDetails

from googlenet_train.config.text import Schema, expected, is_part, parts, properties, sections
from googlenet_train.config.yaml_strict import value_text

_BOOLEANS = {"yes": "true", "on": "true", "true": "true"} | dict.fromkeys(
    ("no", "off", "false"), "false"
)


def unknown(key: str) -> str:
    """For a section or dotted key that does not exist: the nearest that does."""
    section, _, name = key.rpartition(".")
    if "." in section and section not in properties():
        return unknown(section)  # the mistake is in the name of the key, not of its part
    if section in properties() and (known := parts(section)):
        near = get_close_matches(name, known, 1)
        hint = (
            f"did you mean {section}.{near[0]}?" if near else f"{section} has {', '.join(known)}."
        )
        return f"unknown key; {hint}"
    names = {known: known.partition(".")[2] for known in properties()}
    near = [known for known in names if names[known] == name]  # right name, wrong section
    if not near and not section:
        near = get_close_matches(name, sections(), 1)
    inside = [names[known] for known in names if known.startswith(f"{section}.")]
    if not near:
        near = [f"{section}.{close}" for close in get_close_matches(name, inside, 1)]
    if not near:
        close = get_close_matches(name, names.values(), 1)
        near = [known for known in names if names[known] in close]
    if section:
        near = get_close_matches(key, near, 1, cutoff=0.8) or near
    if near:
        return f"unknown key; did you mean {' or '.join(near)}?"
    if inside:
        return f"unknown key; {section} has {', '.join(inside)}."
    return f"unknown key; the sections are {', '.join(sections())}."


def wrong(key: str, index: int | None, error: ErrorDetails) -> str:
    """For one of pydantic's errors, about the value of `key` or its index-th item."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return unknown(key)
    outer, _, name = key.rpartition(".")
    described = parts(outer)[name] if is_part(key) else properties()[key]
    # A number at the end of the place: a list that is too short.
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"missing. {described['description']}"
    if index is not None:
        described = described.get("items") or described["prefixItems"][index]
    value = error["input"]
    return f"must be {expected(described)}, not {shown(value)}.{_hint(described, value)}"


def shown(value: object) -> str:
    """A value for a message: short, on one line, and text told apart from numbers."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, str):
        text = f"the text {json.dumps(value, ensure_ascii=False)}"
    else:
        text = " ".join(value_text(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(described: Schema, value: object) -> str:
    """What to write instead, where that can be told from what was written; or nothing."""
    choices = described.get("anyOf", [described])
    types = {choice["type"] for choice in choices}
    words = [word for choice in choices for word in choice.get("enum", [choice.get("const")])]
    if isinstance(value, str):
        if "boolean" in types and value.lower() in _BOOLEANS:
            return f" Write {_BOOLEANS[value.lower()]}."
        if types & {"integer", "number"} and (number := _number(value)) is not None:
            return f" Write {number} without quotes."
        near = get_close_matches(value.lower(), [word for word in words if word], 1, 0.7)
        return f" Did you mean {near[0]}?" if near else ""
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return f" Write {int(value)}."
    if isinstance(value, int | float) and not isinstance(value, bool) and "items" in described:
        return f" Write [{value_text(value)}]."
    if isinstance(value, int | float) and "string" in types and not any(words):
        return " Put it in quotes."
    return ""


def _number(text: str) -> int | float | None:
    """The number that a quoted text, or one like 1_000, was meant as."""
    for kind in (int, float):
        try:
            number: int | float = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None

"""YAML with no surprises: the scalars of YAML 1.2, one document, no aliases, no foreign tags.

PyYAML follows YAML 1.1, where `1e-4` is text, `no` is a boolean, `1:30` is the number 90, and a
key that stands twice is silently overwritten. Here nodes keep their line, so that whoever reads
them can say where a mistake is.
"""

import re
from collections.abc import Callable

import yaml
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

_PREFIX = "tag:yaml.org,2002:"


class NotYaml(Exception):
    """A text that is no YAML, or more of it than a config may use; `line` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own name and form)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # A few lines of aliases can stand for gigabytes.
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise NotYaml(mark.line + 1, "an alias (*name) is not used here; repeat the value")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise NotYaml(key.start_mark.line + 1, "a key must be a word, not a list")
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Dumper(yaml.SafeDumper):
    # Text is quoted where either version of YAML would take it for something else.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            *_Loader.yaml_implicit_resolvers.get(first, []),
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
    }


def compose(text: str) -> yaml.Node | None:
    """The root node of the one document in `text`; None if it holds comments and blanks alone.

    Raises NotYaml.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(line, f"the character U+{error.character:04X} is not allowed") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise NotYaml(line, _explain(error, line)) from None
    except RecursionError:
        raise NotYaml(1, "nested too deeply") from None


def _explain(error: MarkedYAMLError, line: int) -> str:
    problem = error.problem or "unreadable"
    if "another document" in problem:
        return "a second document begins (---); a config is one"
    if r"'\t'" in problem:
        return "a tab; indent with spaces"
    if error.context and error.context_mark:
        begun = error.context_mark.line + 1
        where = f" (begun in line {begun})" if begun != line else ""
        return f"not YAML: {error.context}{where}, {problem}"
    return f"not YAML: {problem}"


def plain(node: yaml.Node, report: Callable[[yaml.Node, str], None]) -> object:
    """What `node` stands for: None, bool, int, float, str, or lists and dicts of them.

    What is refused (foreign tags, a key that stands twice) goes to `report` with its node.
    """
    kind = node.tag.removeprefix(_PREFIX)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [plain(item, report) for item in node.value]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return {name: plain(value, report) for name, _, value in pairs(node, report)}
    if isinstance(node, yaml.ScalarNode):
        text = node.value
        if kind in ("str", "!"):
            return text
        if kind == "null":
            return None
        if kind == "bool" and text in ("true", "false"):
            return bool(text == "true")
        try:
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            report(node, f"{text[:40]!r} is no {kind}.")
            return None
    report(
        node, f"the tag {node.tag.replace(_PREFIX, '!!')} is not used here. Write a plain value."
    )
    return None


def pairs(
    node: yaml.MappingNode, report: Callable[[yaml.Node, str], None]
) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """The (key, key's node, value's node) of a mapping; a key that stands twice is reported."""
    lines: dict[str, int] = {}
    found = []
    for key, value in node.value:
        name = str(key.value)
        if name in lines:
            report(key, f"stands twice, first in line {lines[name]}. Leave one out.")
        lines.setdefault(name, key.start_mark.line + 1)
        found.append((name, key, value))
    return found


def value_text(value: object) -> str:
    """`value` as YAML on one line; `compose` and `plain` read the same value back."""
    # A line break inside plain or single quotes would need a second line.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        default_style=style,
        allow_unicode=True,
        sort_keys=False,
        width=float("inf"),
    )
    return str(text).removesuffix("...\n").strip()

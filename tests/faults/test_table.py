"""Each row of docs/reliability.md names tests that exist, and each test here is in a row."""

import ast
import sys
from pathlib import Path

from faults.conftest import HERE, SCRIPTS

sys.path.insert(0, str(SCRIPTS))
from fault_table import ROWS

ROOT = SCRIPTS.parent
TESTS = {test for row in ROWS for test in row.tests}


def defined(path: Path) -> set[str]:
    """The tests of a file, as pytest names them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    name = path.relative_to(ROOT).as_posix()
    return {f"{name}::{n}" for n in names if n.startswith("test_")}


def test_every_test_of_the_table_exists() -> None:
    files = {ROOT / test.split("::")[0] for test in TESTS}
    there = {name for path in files if path.exists() for name in defined(path)}
    missing = {test for test in TESTS - there if (ROOT / test.split("::")[0]).exists()}
    assert missing == set()


def test_every_fault_test_is_in_the_table() -> None:
    here = {name for path in HERE.glob("test_*.py") for name in defined(path)}
    assert {name for name in here - TESTS if "test_table.py" not in name} == set()


def test_the_document_has_the_table() -> None:
    """`python scripts/reliability.py` rewrites it."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert row.fault in text
        assert row.promise in text
        assert all(test.removeprefix("tests/") in text for test in row.tests)

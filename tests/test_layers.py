"""Imports run downwards only, and what must start at once loads no torch: both are enforced."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import googlenet_train

PACKAGE = "googlenet_train"
ROOT = Path(googlenet_train.__file__).parent

# The house from the roof to the ground. A module may import only what stands below it, on a lower
# floor or further down on its own. A new module gets its place here first.
FLOORS = {
    "verbs": [
        "",  # the package itself: its front door, imported when it is called
        "__main__",
        "cli",
        "verbs.train",
        "verbs.evaluate",
        "verbs.evaluate_runs",
        "verbs.predict",
        "verbs.predict_photos",
        "verbs.check",
        "verbs.config",
        "verbs.data",
        "verbs.data_show",
        "verbs.view_sheet",
        "verbs.data_pack",
        "verbs.data_index",
        "verbs.data_verify",
        "verbs.data_prepare",
        "verbs.bare_folder",
        "verbs.arguments",
        "verbs",
        "checks.check",
        "checks.photos",
        "checks.report",
        "checks.gpus",
        "checks.trial",
        "checks.fitting",
        "checks",
        "train",
        "loading",
    ],
    "services": [
        "run.milestones",
        "run.bad_step",
        "run.shortage",
        "run.announce",
        "run.opening",
        "run.state",
        "run.session",
        "run.pretrained",
        "run.trained",
        "run.launch",
        "run.refusals",
        "run.leaks",
        "run.sources",
        "run.runs",
        "run.lock",
        "run.quarantine",
        "run.pictures",
        "run",
        "evaluate",
        "compiled",
        "parallel",
        "checkpoint",
        "reporting",
        "data.cache",
        "data.pack",
        "data.pack_state",
        "data.prefetch",
        "data.loader",
        "data.views",
    ],
    "pure parts": [
        "loss",
        "model.inference",
        "model.googlenet",
        "model.pooling",
        "model",
        "optim",
        "numeric",
        "loss_scale",
        "checks.scaling",
        "ema",
        "metrics",
        "data.balance",
        "data.split",
        "data.digests",
        "data.tables",
        "data.class_names",
        "data.index",
        "data.index_cache",
        "data.folders",
        "data.sidecar",
        "data.hub",
        "data.shards",
        "data.names",
        "data.decode",
        "data.silence",
        "data.policies",
        "data.color",
        "data.mixing",
        "data.erasing",
        "data.orientation",
        "data.crops",
        "data.order",
        "data.sizes",
        "data",
    ],
    "ground": [
        "config.file",
        "config.mistakes",
        "config.text",
        "config",
        "config.schema",
        "config.images",
        "config.learning",
        "config.running",
        "config.types",
        "config.yaml_strict",
        "machine.allocator",
        "machine.device",
        "machine.memory",
        "machine.out_of_memory",
        "machine.signals",
        "machine.background",
        "machine.storage",
        "machine",
        "distributed",
        "roll_call",
        "randomness",
        "errors",
        "version",
    ],
}
# Pure parts take plain arguments: of the ground they may know only this.
PURE_PARTS_MAY_IMPORT = {"distributed", "machine.storage", "randomness", "errors"}

# These answer before torch is loaded: a config or data error within a second.
WITHOUT_TORCH = [
    "errors",
    "randomness",
    "config",
    "config.text",
    "config.file",
    "machine.storage",
    "machine.signals",
    "machine.out_of_memory",
    "distributed",
    "checks.scaling",
    "data.names",
    "data.shards",
    "data.hub",
    "data.sidecar",
    "data.index",
    "data.order",
    "data.sizes",
    "data.crops",
    "run.runs",
    "run.launch",
    "checks.check",
    "cli",
    "__main__",
]

Imports = dict[str, set[str]]


def read_imports(root: Path, package: str = PACKAGE) -> Imports:
    """For every module below `root` the modules of the package that it imports, anywhere in it."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def inside(absolute: str) -> str | None:
        """`googlenet_train.data.order` as `data.order`; None for other packages."""
        return absolute[len(package) + 1 :] if f"{absolute}.".startswith(f"{package}.") else None

    imports: Imports = {}
    for module, path in files.items():
        found = imports[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name for alias in node.names if (name := inside(alias.name)) is not None}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
                base = inside(node.module or "")
                if base is None:
                    continue
                for alias in node.names:  # a module, or something inside of one
                    name = f"{base}.{alias.name}".lstrip(".")
                    found.add(name if name in files else base)
        found.discard(module)
    return imports


def violations(
    imports: Imports, floors: dict[str, list[str]], pure_parts_may_import: set[str]
) -> list[str]:
    """One line for each thing that is wrong; an order from top to bottom leaves no cycle."""
    stands = [module for floor in floors.values() for module in floor]
    wrong = [f"{module!r} has no floor" for module in imports if module not in stands]
    wrong += [f"{module!r} is no module any more" for module in stands if module not in imports]
    wrong += [f"{m!r} stands on two floors" for m in set(stands) if stands.count(m) > 1]
    for module in stands:
        for other in sorted(imports.get(module, set())):
            if other not in stands:
                wrong.append(f"{module!r} imports {other!r}, which has no floor")
            elif stands.index(other) < stands.index(module):
                wrong.append(f"{module!r} imports {other!r}, which stands above it")
            elif (
                module in floors["pure parts"]
                and other in floors["ground"]
                and other not in pure_parts_may_import
            ):
                wrong.append(f"the pure part {module!r} imports {other!r}")
    return wrong


# --- the house -----------------------------------------------------------------------------------


def test_imports_run_downwards_only():
    imports = read_imports(ROOT)
    assert sum(map(len, imports.values())) > 50  # it does read them
    assert violations(imports, FLOORS, PURE_PARTS_MAY_IMPORT) == []


def test_no_pure_part_reaches_the_config():
    imports = read_imports(ROOT)
    for part in FLOORS["pure parts"]:
        reached, pending = set(), [part]
        while pending:
            module = pending.pop()
            if module not in reached:
                reached.add(module)
                pending += imports[module]
        assert not {module for module in reached if module.startswith("config")}, part


# --- that the check can fail ---------------------------------------------------------------------

SMALL_FLOORS = {
    "verbs": ["cli"],
    "services": ["save"],
    "pure parts": ["data.order", "data"],
    "ground": ["config", "errors", ""],
}
SMALL_HOUSE = {
    "__init__.py": "__version__ = '1'",
    "cli.py": "from house import __version__\ndef main():\n    from house import save",
    "save.py": "import os, json\nfrom house.data import order\nimport house.errors",
    "data/__init__.py": "",
    "data/order.py": "from house.errors import Oops",
    "config.py": "from household import errors",
    "errors.py": "class Oops(Exception): ...",
}


@pytest.mark.parametrize(
    ("file", "text", "complaints"),
    [
        (None, "", []),
        ("errors.py", "from house import cli", ["'errors' imports 'cli', which stands above it"]),
        (
            "data/order.py",
            "def f():\n    import house.save",  # a cycle, by way of a late import
            ["'data.order' imports 'save', which stands above it"],
        ),
        (
            "data/order.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.config import C",
            ["the pure part 'data.order' imports 'config'"],
        ),
        ("pack.py", "", ["'pack' has no floor"]),
        (
            "data/color.py",
            "import house.cli",
            ["'data.color' has no floor"],
        ),
    ],
)
def test_the_check_notices(tmp_path, file, text, complaints):
    for name, content in {**SMALL_HOUSE, **({file: text} if file else {})}.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    imports = read_imports(tmp_path / "house", "house")
    assert imports["cli"] == {"", "save"}
    assert imports["save"] == {"data.order", "errors"}
    assert imports["config"] == set()
    assert violations(imports, SMALL_FLOORS, {"errors"}) == complaints


def test_the_check_notices_a_module_that_is_gone():
    imports = {module: set() for floor in SMALL_FLOORS.values() for module in floor}
    assert violations(imports, SMALL_FLOORS, set()) == []
    del imports["save"]
    assert violations(imports, SMALL_FLOORS, set()) == ["'save' is no module any more"]


# --- what is loaded when -------------------------------------------------------------------------


def loaded(*modules: str, watched: tuple[str, ...]) -> dict[str, list[str]]:
    """Which of `watched` each import brings in, in a fresh interpreter, one after the other."""
    script = f"""
import importlib, sys
before = set()
for module in {modules!r}:
    importlib.import_module("{PACKAGE}" + ("." + module if module else ""))
    now = {{name for name in {watched!r} if name in sys.modules}}
    print(module, *sorted(now - before))
    before |= now
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {module: found for module, *found in lines if found}


def test_modules_without_torch():
    heavy = ("torch", "torchvision", "tensorboard", "PIL", "safetensors.torch")
    assert loaded(*WITHOUT_TORCH, watched=heavy) == {}


def test_the_command_line_alone_loads_nothing_heavy():
    assert loaded("cli", watched=("numpy", "pydantic", "yaml", "safetensors", "torch")) == {}


def test_loading_is_noticed():
    assert loaded("errors", "ema", watched=("torch",)) == {"ema": ["torch"]}


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        ([], 2),
        (["config", "--defaults"], 0),
        (["--config", "quickstart.yaml", "optimizer.lr=fast"], 2),
        (["--config", "quickstart.yaml", "data.train=missing"], 3),
        (["check", "--config", "quickstart.yaml", "data.train=missing"], 3),
    ],
    ids=["nothing", "defaults", "config error", "data error", "check"],
)
def test_answers_without_torch(tmp_path, words, exit_code):
    script = (
        "import sys; sys.modules['torch'] = None\n"  # an import of it raises ImportError
        f"from {PACKAGE}.cli import main\n"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == exit_code, done.stderr

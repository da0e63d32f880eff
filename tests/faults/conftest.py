"""A process that starts runs quickly, and what tells the ends of two runs apart."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY, draw_photos

from googlenet_train import checkpoint

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
RATES = {"train/images_per_second", "train/data_wait"}

posix = pytest.mark.skipif(os.name == "nt", reason="Windows forks no processes")


class Child:
    """A command in a fork; `ask` speaks with the process that it is a child of."""

    def __init__(self, pid: int, log: Path, ask: Callable[[object], int]) -> None:
        self.pid, self._log, self._ask = pid, log, ask

    @property
    def stderr(self) -> str:
        """What it wrote, on stdout too."""
        return self._log.read_text(errors="replace")

    def wait(self, timeout: float = 60) -> int:
        """Its exit code, negative for a signal; one that hangs is killed."""
        alarm = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        alarm.start()
        try:
            code = self._ask({"wait": self.pid})
        finally:
            alarm.cancel()
        assert "Traceback" not in self.stderr, self.stderr
        return code

    def until(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Wait until something has come true."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.002)


Start = Callable[..., Child]


@pytest.fixture(scope="package")
def _server() -> Iterator[Callable[[object], int]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def ask(request: object) -> int:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer: int = json.loads(process.stdout.readline())
        return answer

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture
def start(_server: Callable[[object], int], tiny_folder: Path) -> Start:
    """`start(folder, *words, before=...)`: `--config tiny.yaml run.dir=folder *words` in a fork.

    `before` are statements that are executed in it first; without a folder they are all.
    """
    begun = []

    def start(folder: str | None, *words: str, before: str = "") -> Child:
        log = tiny_folder / f"log-{len(begun)}"
        request = {
            "cwd": str(tiny_folder),
            "words": ["--config", "tiny.yaml", f"run.dir={folder}", *words] if folder else [],
            "before": before,
            "log": str(log),
        }
        begun.append(Child(_server(request), log, _server))
        return begun[-1]

    return start


@pytest.fixture(scope="package")
def _whole(_server: Callable[[object], int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    draw_photos(root / "photos")
    (root / "tiny.yaml").write_text(TINY)
    request = {
        "cwd": str(root),
        "words": ["--config", "tiny.yaml", "run.dir=whole", "checkpoint.keep=9"],
        "before": "",
        "log": str(root / "log"),
    }
    assert Child(_server(request), root / "log", _server).wait() == 0
    return root / "whole"


@pytest.fixture
def whole(_whole: Path) -> Path:
    """The run of tiny.yaml that nobody disturbed: steps 3 and 6 are saved. Not to be changed."""
    return _whole


def end(folder: Path) -> dict[str, object]:
    """All that has to be the same at the end of a run: bits, best, and what was logged."""
    from safetensors.numpy import load_file

    path = checkpoint.checkpoints(folder / "checkpoints")[-1]
    info = checkpoint.verify(path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        **{name: array.tobytes() for name, array in load_file(path).items()},
        **{key: info[key] for key in ("best", "results", "evaluated", "classes", "fingerprints")},
        "step": checkpoint.step_of(path),
        "log": [{k: v for k, v in line.items() if k not in RATES} for line in lines],
    }


def unequal(one: Path, other: Path) -> list[str]:
    a, b = end(one), end(other)
    return [name for name in a.keys() | b.keys() if a.get(name) != b.get(name)]


def newest(folder: Path) -> tuple[int, list[str]]:
    """The newest step that verifies, and what is said of those that do not."""
    found, bad = checkpoint.newest(folder / "checkpoints")
    return (found.step if found else 0), bad

"""What several tests share: a small data set, a config for it, and the real command line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Two teams of OpenMP threads on few cores wait for each other: everything takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CLASSES = {"cat": 40, "dog": 120, "owl": 200}  # and how bright each is
TINY = """\
data:
  train: photos/train
  val: photos/val
  image_size: 32
  workers: 1
optimizer:
  batch_size: 8
  lr: 0.01
schedule:
  epochs: 2
  warmup_epochs: 0
ema: {decays: [0.9]}
device: {kind: cpu, precision: fp32, threads: 1}
"""


@dataclass(frozen=True)
class Answer:
    """What one command returned."""

    rc: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one error that it ended with; lines that it goes over are kept."""
        assert self.stderr.count("error    ") == 1, self.stderr
        return self.stderr.split("error    ", 1)[1].rstrip("\n")


Cli = Callable[..., Answer]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli(*arguments, cwd=...)` runs `python -m googlenet_train` in a process of its own."""

    def run(*arguments: object, cwd: Path, timeout: float = 120) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "googlenet_train", *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


def draw_photos(root: Path, train: int = 10, val: int = 3) -> Path:
    """`root`/train and `root`/val: noisy JPEGs of 40 px in three classes told apart by light."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, light in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(light, 30, (40, 40, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A folder to type commands in: photos/train and photos/val (30 and 9 JPEGs), tiny.yaml."""
    draw_photos(tmp_path / "photos")
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def in_folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder is that of tiny.yaml, and runs in this process leave torch as it was.

    Their checkpoints, over 100 MB each, go with the test: pytest itself keeps the folders of three
    sessions.
    """
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.chdir(tiny_folder)
    yield tiny_folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    for path in tiny_folder.rglob("*.safetensors"):
        path.unlink()


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """The same, with the finished run of tiny.yaml in runs/tiny: steps 3 and 6 are saved."""
    folder = tmp_path_factory.mktemp("trained")
    draw_photos(folder / "photos")
    (folder / "tiny.yaml").write_text(TINY)
    answer = cli("--config", "tiny.yaml", cwd=folder)
    assert answer.rc == 0, answer.stderr
    return folder


def copy_run(source: Path, target: Path, last_step: int | None = None) -> None:
    """A copy of a run, or of a folder of runs, its checkpoints as links: replace, never edit them.

    With `last_step` as a kill right after the checkpoint of that step would have left it.
    """

    def copy(one: str, other: str) -> None:
        if one.endswith(".safetensors"):
            os.link(one, other)
        else:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=copy)
    for path in target.rglob("step-*.safetensors"):
        if last_step is not None and int(path.stem.removeprefix("step-")) > last_step:
            path.unlink()


@pytest.fixture
def trained_folder(_trained_once: Path, tmp_path: Path) -> Path:
    """A copy of a folder with a finished run. Its checkpoints are links: replace, never edit."""

    folder = tmp_path / "trained"
    copy_run(_trained_once, folder)
    return folder

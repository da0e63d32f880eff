"""A run that is killed and resumed ends with the same bits as one that never stopped.

Everything goes through the real command in processes of its own, and the kill is a real SIGKILL.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

STEPS = 15  # 3 epochs of 5: 40 images, batch 8
RATES = {"train/images_per_second", "train/data_wait"}


def long(value: object) -> object:
    """A case that CI leaves out: another like it runs there."""
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, and small noisy images of two classes: 40 to train on, 12 to evaluate on."""
    root = tmp_path_factory.mktemp("resume")
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for name, tint in (("dark", 40), ("light", 170)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(tint, tint + 80, (36, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    (root / "tiny.yaml").write_text(
        """
device: {threads: 1}  # so that tests on a busy machine do not wait for each other
data: {train: train, val: val, image_size: 64, workers: 1}
optimizer: {batch_size: 8, lr: 0.02, accumulate: 2, clip_norm: 5.0}
schedule: {epochs: 3, warmup_epochs: 1, image_size: {from: 32, to: 64, until: 0.5}}
ema: {decays: [0.5, 0.9], every_steps: 2}
checkpoint: {every_steps: 2, keep: 3}
log: {every_steps: 4}
"""
    )
    return root


def command(*arguments: str, before: str = "") -> list[str]:
    """The command line in a fresh Python, after the statements `before`."""
    code = f"{before}\nimport sys\nfrom googlenet_train.cli import main\nsys.exit(main())"
    return [sys.executable, "-c", code, "--config", "tiny.yaml", *arguments]


def run(work: Path, *arguments: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments, before=before), cwd=work, capture_output=True, text=True, timeout=300
    )


def kill_at(
    work: Path,
    folder: str,
    step: int,
    *arguments: str,
    number: int = signal.SIGKILL,
    before: str = "",
) -> int:
    """Start a run and send it a signal as soon as the checkpoint of `step` is committed."""
    process = subprocess.Popen(
        command(f"run.dir={folder}", *arguments, before=before),
        cwd=work,
        stderr=subprocess.DEVNULL,
    )
    mark = work / folder / "checkpoints" / f"step-{step:08d}.safetensors"
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=120)


def final_state(work: Path, folder: str) -> dict[str, torch.Tensor]:
    return load_file(work / folder / "checkpoints" / f"step-{STEPS:08d}.safetensors")


def logged(work: Path, folder: str) -> list[dict[str, float]]:
    lines = (work / folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in RATES} for r in records]


def differences(work: Path, one: str, other: str) -> list[str]:
    """Names of the tensors that are not equal to the bit, and `log` where logged values differ."""
    a, b = final_state(work, one), final_state(work, other)
    assert a.keys() == b.keys()
    unequal = [name for name in a if not torch.equal(a[name], b[name])]
    return unequal + (["log"] if logged(work, one) != logged(work, other) else [])


@pytest.fixture(scope="module")
def uninterrupted(work: Path) -> str:
    done = run(work, "run.dir=whole")
    assert done.returncode == 0, done.stderr
    return "whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("step", "workers"), [(2, 0), (6, 1), (8, 3)])
def test_killed_and_resumed_is_bit_identical(
    work: Path, uninterrupted: str, step: int, workers: int
) -> None:
    folder = f"killed-{step}-{workers}"
    assert kill_at(work, folder, step, f"data.workers={workers}") == -signal.SIGKILL
    resumed = run(work, f"run.dir={folder}", "--resume", f"data.workers={workers}")
    assert resumed.returncode == 0, resumed.stderr
    assert "resume   at step" in resumed.stderr
    assert differences(work, uninterrupted, folder) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM")
def test_sigterm_saves_at_the_next_step_and_resumes_bit_identical(
    work: Path, uninterrupted: str
) -> None:
    assert kill_at(work, "stopped", 4, number=signal.SIGTERM) == 143
    assert run(work, "run.dir=stopped", "--resume").returncode == 0
    assert differences(work, uninterrupted, "stopped") == []


SABOTAGE = {
    "order": """
import numpy
import googlenet_train.data.order as order
stream = numpy.random.RandomState(0)
made = {}
order.permutation = lambda seed, epoch, count: made.setdefault(epoch, stream.permutation(count))
""",
    "dropout": """
import torch
seeded = torch.manual_seed
calls = []
torch.manual_seed = lambda seed: calls.append(seed) or (seeded(seed) if len(calls) < 3 else None)
""",
    "momentum": """
import googlenet_train.checkpoint as checkpoint
serialise = checkpoint._serialise
def without_momentum(state):
    state.momentum = {}
    return serialise(state)
checkpoint._serialise = without_momentum
""",
}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("what", ["order", long("dropout"), "momentum"])
def test_the_comparison_notices_hidden_state(work: Path, what: str) -> None:
    """The same comparison fails once the order, the dropout or the momentum is hidden state."""
    whole, killed = f"whole-{what}", f"killed-{what}"
    assert run(work, f"run.dir={whole}", before=SABOTAGE[what]).returncode == 0
    kill_at(work, killed, 8, before=SABOTAGE[what])
    assert run(work, f"run.dir={killed}", "--resume", before=SABOTAGE[what]).returncode == 0
    assert differences(work, whole, killed) != []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("step", [long(4), 10, long(12), 14])
def test_killed_twice_and_resumed_is_bit_identical(
    work: Path, uninterrupted: str, step: int
) -> None:
    folder = f"twice-{step}"
    kill_at(work, folder, step - 2)
    kill_at(work, folder, step, "--resume")
    assert run(work, f"run.dir={folder}", "--resume").returncode == 0
    assert differences(work, uninterrupted, folder) == []

"""What `check` says of memory: how it is put together, and that a real run takes about as much."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from googlenet_train.checks import check, report, trial
from googlenet_train.config import file as config_file
from googlenet_train.data.cache import open_cache
from googlenet_train.data.index import open_source
from googlenet_train.machine import allocator, memory

MB = 10**6
SCRIPT = Path(__file__).parents[1] / "scripts" / "check_against_run.py"


class Photos:
    """As many photos as somebody says."""

    files = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def chosen(self, places: Sequence[int]) -> "Photos":
        return Photos(len(places))


def session(val: Photos | None, batch_size: int, device: str = "cpu") -> SimpleNamespace:
    """As much of a session as an evaluation that is tried looks at."""
    return SimpleNamespace(
        launch=SimpleNamespace(val=val, train=Photos(1)),
        config=config_file.load(
            "quickstart.yaml", [f"evaluate.batch_size={batch_size}", "data.workers=1"]
        ).config,
        model=torch.nn.Identity(),
        averages={},
        device=torch.device(device),
    )


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An evaluation takes 100 MB more than there were; how many photos each was of."""
    seen: list[int] = []
    monkeypatch.setattr(
        trial, "evaluate", lambda networks, photos, setting: seen.append(len(photos))
    )
    plain = SimpleNamespace(precision="fp32", at_once=lambda count: count)
    monkeypatch.setattr(trial.Setting, "of", lambda config, device: plain)
    monkeypatch.setattr(trial, "of_training", lambda *given: {})
    monkeypatch.setattr(trial, "forget_peak", lambda device: None)
    monkeypatch.setattr(trial, "peak", lambda device: (500 + 100 * len(seen)) * MB)
    return seen


@pytest.mark.parametrize(
    ("photos", "at_once", "tried", "expected"),
    [
        (1000, 64, 64, 600),
        (1000, 256, 64, 900),  # four times 100 MB
        (1000, 16, 64, 600),  # in four batches of 16
        (100, 256, 64, 656),  # there are no more than 100
        (9, 256, 9, 600),
    ],
)
def test_an_evaluation_takes_as_much_as_its_batches(evaluation, photos, at_once, tried, expected):
    _, most = trial._tried_evaluation(session(Photos(photos), at_once))
    assert evaluation == [tried]
    assert most == pytest.approx(expected * MB, abs=MB)
    assert trial._tried_evaluation(session(None, at_once)) == (0.0, None)


def test_of_batches_that_are_taken_in_parts_only_the_pixels_count(evaluation, monkeypatch):
    parts = SimpleNamespace(precision="fp32", at_once=lambda count: 16, workers=1, image_size=64)
    monkeypatch.setattr(trial.Setting, "of", lambda config, device: parts)
    _, most = trial._tried_evaluation(session(Photos(1000), 256))
    assert most == 600 * MB + (2 * 256 - 64) * 3 * 64**2  # a batch, and one made ahead
    evaluation.clear()
    _, most = trial._tried_evaluation(session(Photos(100), 256))
    assert most == 600 * MB + (100 - 64) * 3 * 64**2
    evaluation.clear()
    parts.at_once = lambda count: min(count, 128)  # those that are tried are less than a part
    _, most = trial._tried_evaluation(session(Photos(1000), 256))
    assert most == 700 * MB + (2 * 256 - 64) * 3 * 64**2


def test_the_peak_of_a_run(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 3000 * MB)
    monkeypatch.setattr(memory, "resident", lambda: 700 * MB)
    run = session(None, 8)
    found = trial._memory(run, 900 * MB, 800 * MB, 150 * MB)
    assert found == (900 * MB, 800 * MB, 300 * MB, 3700 * MB)
    assert found.peak == 1200 * MB
    assert trial._memory(run, 900 * MB, 2000 * MB, 150 * MB).peak == 2000 * MB
    assert trial._memory(run, 900 * MB, None, 150 * MB).evaluation == 0
    assert trial._memory(run, None, None, 150 * MB) is None
    monkeypatch.setattr(memory, "available", lambda: None)
    assert trial._memory(run, 900 * MB, None, 150 * MB).room is None


def test_photos_that_will_be_kept_count(in_folder, monkeypatch):
    index = open_source("photos/train")
    for available, expected in ((10**9, 30 * 3 * 32 * 32), (100_000, 50_000)):
        kept = open_cache(
            index, "ram", short_side=32, exif_orientation=False, available=available
        ).photos
        run = session(None, 8)
        run.launch.train = kept
        found = trial._memory(run, 900 * MB, 800 * MB, 0)
        assert found.training - 900 * MB == found.evaluation - 800 * MB == expected
    kept.read(0)
    assert trial._memory(run, 0, 0, 0).training == 50_000 - len(kept.read(0))


def test_on_a_gpu_it_is_the_devices_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * MB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * MB, 80 * MB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * MB)
    gpu = torch.device("cuda", 0)
    trial.forget_peak(gpu)
    assert calls == [gpu]
    assert trial.peak(gpu) == 5 * MB
    run = session(None, 8, "cuda")
    assert trial._memory(run, 5 * MB, 6 * MB, 9 * MB) == (5 * MB, 6 * MB, 0, 77 * MB)
    assert trial.peak(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            (900, 800, 300, 3700),
            "ok memory about 1.20 GB at the peak: 0.90 in a training step, 0.80 in an evaluation, "
            "0.30 for a checkpoint that is written meanwhile; 3.70 GB to be had",
        ),
        ((50_000, 0, 0, None), "ok memory about 50 GB at the peak: 50 in a training step"),
        (
            (900, 800, 300, 1199),
            "warning memory about 1.20 GB at the peak: 0.90 in a training step, 0.80 in an "
            "evaluation, 0.30 for a checkpoint that is written meanwhile; 1.20 GB to be had. The "
            "run may be ended for it: optimizer.accumulate=2 or a smaller evaluate.batch_size "
            "takes less",
        ),
        (None, "ok memory this device does not say what it takes"),
    ],
)
def test_how_it_is_told(capsys, found, line):
    values = found and trial.Memory(*(n if n is None else n * MB for n in found))
    so_far, facts = report.Report(quiet=False), {}
    check._judge_memory(so_far, facts, SimpleNamespace(memory=values))
    assert " ".join(capsys.readouterr().out.split()) == line
    assert ("memory_bytes" in facts) == (found is not None)


@pytest.mark.parametrize(
    ("words", "durations", "expected"),
    [
        (["data.workers=3"], [2, 0.1, 0.1, 0.1, 0.5, 1.5, 0.5, 1.5, 9], 1.0),
        (["data.workers=3", "optimizer.accumulate=2"], [2, 0.1, 0.1, 1, 1, 1, 1, 9], 1.0),
        (["data.workers=0"], [2, 1, 1, 1, 1, 9], 1.0),
        (["data.workers=3"], [4, 3, 4, 9], 4.0),  # no time for more
        (["data.workers=3"], [2, 1], 1.0),  # there are no more
    ],
)
def test_steps_count_once_the_images_made_meanwhile_are_used_up(
    monkeypatch, words, durations, expected
):
    now, left = [0.0], list(durations)
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(trial, "batches_to_come", lambda run, side: iter(()))

    def step(run, batches, count):
        now[0] += left.pop(0)

    monkeypatch.setattr(trial, "take_step", step)
    run = session(None, 8)
    run.config = config_file.load("quickstart.yaml", words).config
    run.guard = SimpleNamespace(counts=torch.zeros(3))
    run.launch.total_steps = len(durations)
    assert trial._timed_step(run, 64) == pytest.approx(expected)


@pytest.mark.skipif(not allocator._is_glibc(), reason="needs Linux with glibc")
def test_what_is_freed_can_be_given_back():
    pieces = [bytearray(100_000) for _ in range(1000)]
    last = bytearray(100_000)  # what is above the pieces keeps the heap from shrinking by itself
    held = memory.resident()
    pieces.clear()
    allocator.give_back()
    assert held is not None
    assert held - memory.resident() > 80 * MB
    assert len(last)


@pytest.mark.slow
def test_a_run_takes_what_check_says(tiny_folder):
    words = ["--config", "tiny.yaml", "data.image_size=96", "optimizer.batch_size=30"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", *words, "schedule.epochs=2"],
        cwd=tiny_folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["memory_said"] / found["memory_taken"] == pytest.approx(1, abs=0.2), found
    assert not list(tiny_folder.glob("runs/*"))

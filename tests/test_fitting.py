"""`optimizer.accumulate: auto`: the fewest parts that fit, found without touching the run."""

import mmap
import random
import tempfile
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import train
from safetensors.torch import load_file

from googlenet_train import cli, distributed
from googlenet_train.checks import fitting
from googlenet_train.config import file as config_file
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import memory
from googlenet_train.machine.out_of_memory import is_out_of_memory
from googlenet_train.run import launch

MB = 10**6
AUTO = "optimizer.accumulate=auto"


def planned(*words: str, resume: bool = False) -> launch.Launch:
    loaded = config_file.load("tiny.yaml", [AUTO, *words])
    found = launch.plan(loaded, resume=resume, fresh=False, allow=[])
    assert found is not None
    return found[0]


def session(side: int = 32, device: str = "cpu") -> SimpleNamespace:
    """As much of a session as choosing looks at."""
    return SimpleNamespace(
        optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
        choice=SimpleNamespace(why="a GPU"),
        device=torch.device(device),
        config=SimpleNamespace(largest_side=side, data=SimpleNamespace(workers=3)),
    )


# --- by measure, on the CPU ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "parts", "why"),
    [
        (1000, 1, "takes 0.74 of 0.80 GB to be had (80 % of what is free)"),
        (700, 2, "takes 0.42 of 0.56 GB to be had (80 % of what is free); 1 would take 0.74"),
        (525, 2, "takes 0.42 of 0.42 GB to be had (80 % of what is free); 1 would take 0.74"),
        (524, 4, "takes 0.26 of 0.42 GB to be had (80 % of what is free); 2 would take 0.42"),
        (100, 32, "may not fit all the same, it takes 0.12 of 0.08 GB to be had (80 % of what is"),
    ],
)
def test_the_fewest_parts_that_fit_by_measure(monkeypatch, room, parts, why):
    monkeypatch.setattr(fitting, "step_bytes", lambda run: lambda images: (100 + 10 * images) * MB)
    possible = [1, 2, 4, 8, 16, 32]
    choice = fitting.by_measure(session(), possible, [64 // n for n in possible], room * MB)
    assert choice.parts == parts
    assert choice.why.startswith(why)


def test_what_a_step_takes_grows_in_a_straight_line(in_folder, monkeypatch):
    """500 kB, and 30 kB an image; the state twice, and the batches that are made ahead."""
    high = [1000]

    def step(run, images, parts):
        assert parts == 2
        high[0] += {2: 560_000, 8: 180_000}[images]  # above what it was before

    monkeypatch.setattr(memory, "peak", lambda: high[0])
    monkeypatch.setattr(fitting, "made_up_step", step)
    with fitting._trial_session(planned("data.workers=3")) as run:
        needed = fitting.step_bytes(run)
        kept = 4 * 3 * sum(p.numel() for p in run.model.parameters())  # momentum and one average
    ahead = 4 * 3 * 32 * 32
    assert needed(2) == pytest.approx(2 * kept + 560_000 + 2 * ahead, rel=0.01)
    assert needed(102) - needed(2) == 100 * (30_000 + ahead)


# --- by trying, on a GPU -------------------------------------------------------------------------


def trying(monkeypatch, most: int) -> tuple[list[tuple[int, int]], list[bool]]:
    """Steps on more than `most` images fail. What was tried; whether all before it was freed."""
    tried, freed = [], []
    held: list[weakref.ref[torch.Tensor]] = []

    def step(run, batches, count):
        freed.append(all(tensor() is None for tensor in held) and run.grad is None)
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        run.grad = activations  # as backward leaves gradients
        images = len(batches[0].labels)
        tried.append((images, len(batches)))
        assert count == images * len(batches)
        if images > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fitting, "take_step", step)
    return tried, freed


class Run(SimpleNamespace):
    """A session whose gradients are one tensor."""

    def zero_grad(self, set_to_none: bool) -> None:
        self.grad = None


def gpu() -> Run:
    run = Run(**vars(session()), grad=None, guard=SimpleNamespace(counts=torch.zeros(3)))
    run.optimizer = run
    return run


def test_the_fewest_parts_that_fit_by_trying(monkeypatch):
    tried, freed = trying(monkeypatch, most=10)
    choice = fitting.by_trying(gpu(), [1, 2, 4, 8], [32, 16, 8, 4])
    assert tried == [(32, 1), (16, 2), (8, 2)]  # two parts say what more would
    assert freed == [True] * 3
    why = "fits in the memory of a GPU; 16 images at once do not"
    assert choice == (4, why)
    tried, _ = trying(monkeypatch, most=32)
    assert fitting.by_trying(gpu(), [1, 2], [32, 16]) == (1, "fits in the memory of a GPU")
    assert tried == [(32, 1)]


def test_where_nothing_fits_the_device_is_named(monkeypatch):
    trying(monkeypatch, most=1)
    with pytest.raises(
        UserError, match=r"^not even 2 images of 32 px at once fit in the memory of"
    ):
        fitting.by_trying(gpu(), [1, 2], [4, 2])


def test_the_batches_made_ahead_must_fit_beside_the_step(monkeypatch):
    trying(monkeypatch, most=32)
    made, empty = [], torch.empty

    def room(count, **named):
        made.append(count)
        if count > 16 * 4 * 3 * 32**2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(count, **named)

    monkeypatch.setattr(torch, "empty", room)
    assert fitting.by_trying(gpu(), [1, 2], [32, 16]).parts == 2
    assert made == [images * 4 * 3 * 32**2 for images in (32, 16)]  # three made ahead, one in use


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def step(run, batches, count):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(fitting, "take_step", step)
    with pytest.raises(RuntimeError, match="device-side assert"):
        fitting.by_trying(gpu(), [1, 2], [4, 2])


def test_a_part_of_the_gpu_is_left_alone(monkeypatch):
    shares = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    with suppress(UserError), fitting._a_little_spare(torch.device("cuda")):
        assert shares == [pytest.approx(0.95 * 0.4)]  # others hold 60
        raise UserError("", ExitCode.USAGE)
    assert shares[1:] == [1.0]


# --- for a run -----------------------------------------------------------------------------------


@pytest.fixture
def place(in_folder, monkeypatch, tmp_path_factory) -> Path:
    """The current folder; temporary files go to an empty one of their own."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return in_folder


def randoms() -> list[object]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


def test_nothing_of_the_run_is_touched(place, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda: 10 * MB)
    opened = fitting.open_session
    monkeypatch.setattr(fitting, "open_session", lambda given: launch.say("loud") or opened(given))
    before, files = planned("optimizer.batch_size=30"), sorted(place.rglob("*"))
    capsys.readouterr()
    numbers = randoms()
    after, line = fitting.fitted(before)
    assert randoms() == numbers
    assert sorted(place.rglob("*")) == files
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    assert capsys.readouterr().err == ""
    assert after.config.optimizer.accumulate == 15
    assert after.config.optimizer.batch_size == 30
    assert after.config.optimizer.lr == before.config.optimizer.lr
    assert (after.folder, after.resume) == (before.folder, before.resume)
    assert line is not None
    assert line.startswith("optimizer.accumulate 15, 2 images at once: may not fit all the same,")
    assert fitting.fitted(after) == (after, None)


def chosen(monkeypatch, *words: str) -> tuple[list[int], list[int], int | None]:
    """What is to be chosen from: parts, images at once, bytes."""
    asked = []

    def by_measure(run, possible, sizes, room):
        asked.append((possible, sizes, room))
        return fitting.Choice(possible[0], "")

    @contextmanager
    def nothing(launch):
        yield None

    monkeypatch.setattr(fitting, "by_measure", by_measure)
    monkeypatch.setattr(fitting, "_trial_session", nothing)
    monkeypatch.setattr(fitting, "_give_back", lambda: None)
    fitting.fitted(planned(*words))
    return asked[0]


def test_what_there_is_to_choose_from(place, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 600 * MB)
    six = ("optimizer.batch_size=12",)
    parts, sizes = [1, 2, 3, 4, 6], [12, 6, 4, 3, 2]
    assert chosen(monkeypatch, *six) == (parts, sizes, 600 * MB)
    pairs = chosen(monkeypatch, *six, "augment.mixup=0.2")
    assert pairs == ([1, 2, 3, 6], [12, 6, 4, 2], 600 * MB)
    assert chosen(monkeypatch, *six, "data.cache=ram")[2] == 300 * MB  # photos get the other half
    monkeypatch.setattr(distributed, "local_world_size", lambda: 2)
    assert chosen(monkeypatch, *six)[2] == 300 * MB


def test_where_memory_cannot_be_known_nothing_is_divided(place, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    after, line = fitting.fitted(planned())
    assert after.config.optimizer.accumulate == 1
    assert line is not None
    assert line.endswith(": this system does not say how much memory is free")


def test_all_ranks_take_the_most_parts_that_one_needs(place, monkeypatch):
    monkeypatch.setattr(fitting, "_choose", lambda *_: fitting.Choice(2, "here"))
    monkeypatch.setattr(
        distributed,
        "gather",
        lambda mine: (
            [mine, fitting.Choice(4, "there")] if isinstance(mine, tuple) else [mine, mine]
        ),
    )
    after, line = fitting.fitted(planned())
    assert after.config.optimizer.accumulate == 4
    assert line == "optimizer.accumulate 4, 2 images at once: there"


def test_apart_a_rank_is_alone_on_its_own_device(monkeypatch):
    for name, value in (("WORLD_SIZE", 4), ("RANK", 3), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "_call", object())

    def who() -> tuple[int, int, bool]:
        return distributed.world_size(), distributed.rank(), distributed.in_group()

    with suppress(KeyError), distributed.apart():
        assert who() == (1, 0, False)
        assert (distributed.local_rank(), distributed.local_world_size()) == (1, 2)
        raise KeyError
    assert who() == (4, 3, True)


def test_a_run_keeps_what_was_found_at_its_step_0(place, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "_choose", lambda *_: fitting.Choice(2, "as it must be"))
    words = ["--config", "tiny.yaml", AUTO, "schedule.epochs=1", "data.val=null"]
    assert cli.main([*words, "data.val_fraction=0"]) == ExitCode.DONE
    said = capsys.readouterr().err
    assert "memory   optimizer.accumulate 2, 4 images at once: as it must be\n" in said
    assert "\n  accumulate: 2\n" in Path("runs/tiny/config.yaml").read_text()
    settings = ("data.val=null", "data.val_fraction=0", "schedule.epochs=2")
    resumed = planned(*settings, resume=True)
    assert (resumed.resume, resumed.config.optimizer.accumulate) == (True, 2)
    assert fitting.fitted(resumed) == (resumed, None)
    monkeypatch.setenv("WORLD_SIZE", "8")  # on which two parts each are too many
    with pytest.raises(UserError, match=r"divide into 8 ranks x optimizer\.accumulate 2"):
        planned(*settings, resume=True)


@pytest.mark.slow
@pytest.mark.long
def test_with_auto_a_run_is_the_same_run(place, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    monkeypatch.setattr(fitting, "by_measure", measured := _two(fitting.by_measure))
    words = ["--config", "tiny.yaml", "schedule.epochs=1"]
    assert cli.main([*words, AUTO, "run.dir=found"]) == ExitCode.DONE
    assert measured.calls == 1
    assert cli.main([*words, "optimizer.accumulate=2", "run.dir=given"]) == ExitCode.DONE
    a, b = (load_file(f"{run}/checkpoints/step-00000003.safetensors") for run in ("found", "given"))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class _two:
    """Measures as ever, and then wants two parts."""

    def __init__(self, measure) -> None:
        self.measure, self.calls = measure, 0

    def __call__(self, *given) -> fitting.Choice:
        self.calls += 1
        assert self.measure(*given).parts == 1
        return fitting.Choice(2, "")


@pytest.mark.slow
def test_ranks_measure_by_themselves_and_agree(tiny_folder):
    before = """
import os
from googlenet_train.checks import fitting
from googlenet_train.machine import memory
memory.available = lambda: 1_100_000_000
def longer(run, *rest):
    if os.environ["RANK"] == "1":  # nobody waits for what another one tries
        fitting.made_up_step(run, 2, 1)
    return measured(run, *rest)
measured, fitting.by_measure = fitting.by_measure, longer
"""
    words = (AUTO, "optimizer.batch_size=24", "data.image_size=64", "schedule.epochs=1")
    done = train(2, tiny_folder, *words, before=before)
    assert done.codes == [0, 0], done.stderr
    assert done.stderr.count("memory   optimizer.accumulate ") == 1
    assert "of 0.44 GB to be had" in done.stderr


# --- what memory says ----------------------------------------------------------------------------


def test_the_peak_is_that_since_it_was_forgotten():
    def most(megabytes: int) -> int:
        memory.forget_peak()
        before = memory.peak()
        assert before is not None
        with mmap.mmap(-1, megabytes * MB) as pages:  # malloc may have as much to spare
            for place in range(0, len(pages), mmap.PAGESIZE):
                pages[place] = 1
            after = memory.peak()
        assert after is not None
        return after - before

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot forget a peak")
    assert most(200) == pytest.approx(200 * MB, abs=5 * MB)
    assert most(50) == pytest.approx(50 * MB, abs=5 * MB)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate "
                      "memory: you tried to allocate 4 bytes. Error code 12"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_how_a_lack_of_memory_is_told(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_real_allocators_words_are_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)

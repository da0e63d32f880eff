"""Training goes on while a checkpoint is written, and nothing is lost by it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import googlenet_train.train as training
from googlenet_train import checkpoint, cli
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import storage
from googlenet_train.machine.background import Background
from googlenet_train.run import state

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and sends no SIGTERM")


# --- the thread ----------------------------------------------------------------------------------


def test_one_piece_of_work_at_a_time():
    background, done, gate = Background(), [], threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    background.start(first)
    background.check()  # not done, and no reason to wait
    assert done == []
    threading.Timer(0.1, gate.set).start()
    background.start(lambda: done.append(2))  # waits for the first
    assert done[0] == 1
    background.wait()
    assert done == [1, 2]


def test_an_error_is_raised_once_and_only_when_asked():
    background, failed = Background(), threading.Event()

    def fail() -> None:
        failed.set()
        raise UserError("the disk is full", ExitCode.STORAGE)

    background.start(fail)
    assert failed.wait(10)
    time.sleep(0.1)
    with pytest.raises(UserError, match="full"):
        background.check()
    background.check()
    background.wait()


# --- in a run ------------------------------------------------------------------------------------


class Steps:
    """The steps that a run in this process has begun."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.at: dict[int, threading.Event] = {n: threading.Event() for n in range(12)}


@pytest.fixture
def steps(monkeypatch, in_folder) -> Steps:
    steps, train_step = Steps(), training.train_step

    def step(*arguments, **settings):
        steps.begun.append(settings["step"])
        steps.at[settings["step"]].set()
        train_step(*arguments, **settings)

    monkeypatch.setattr(training, "train_step", step)
    return steps


def run(folder: str, *words: str) -> int:
    once = ("checkpoint.every_epochs=null", "evaluate.every_epochs=null")
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *once, *words])


def unequal(one: str, other: str, step: int) -> list[str]:
    a, b = (
        load_file(f"{folder}/checkpoints/step-{step:08d}.safetensors") for folder in (one, other)
    )
    assert a.keys() == b.keys()
    return [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]


def delay_the_first_save(
    monkeypatch: pytest.MonkeyPatch, steps: Steps, seconds: float
) -> list[bool]:
    """Step 2 is written once the second step after it has begun: whether it came to that."""
    save, waited = checkpoint.save, []
    steps.at = {n: threading.Event() for n in range(12)}

    def slow(folder: Path, state: checkpoint.TrainState) -> Path:
        if state.step == 2:
            waited.append(steps.at[3].wait(seconds))
        return save(folder, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    return waited


def test_training_goes_on_while_a_checkpoint_of_an_earlier_step_is_written(monkeypatch, steps):
    assert run("plain", "checkpoint.every_steps=2", "checkpoint.keep=9") == 0
    waited = delay_the_first_save(monkeypatch, steps, 20)
    assert run("slow", "checkpoint.every_steps=2", "checkpoint.keep=9") == 0
    assert waited == [True]
    # What was written is the state of its step, not that of when it was written.
    assert [unequal("plain", "slow", step) for step in (2, 4, 6)] == [[], [], []]


def test_it_is_noticed_when_training_waits(monkeypatch, steps):
    waited = delay_the_first_save(monkeypatch, steps, 0.5)
    monkeypatch.setattr(Background, "start", lambda self, work: work())
    assert run("waits", "checkpoint.every_steps=2") == 0
    assert waited == [False]


def test_it_is_noticed_when_the_state_is_not_copied(monkeypatch, steps):
    assert run("plain", "checkpoint.every_steps=2", "checkpoint.keep=9") == 0
    delay_the_first_save(monkeypatch, steps, 20)
    monkeypatch.setattr(state, "_copy", lambda tensor: tensor.detach())
    assert run("shared", "checkpoint.every_steps=2", "checkpoint.keep=9") == 0
    assert unequal("plain", "shared", 2) != []


def full_disk_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write_durably

    def fail(path: Path, content: object) -> None:
        if path.suffix == ".safetensors" and checkpoint.step_of(path) >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_durably", fail)


def test_a_full_disk_ends_the_run_at_the_next_step(monkeypatch, steps, capsys):
    full_disk_from(4, monkeypatch)
    train_step = training.train_step

    def step(*arguments, **settings):
        train_step(*arguments, **settings)
        if settings["step"] >= 4:
            time.sleep(1)  # long enough for the thread to fail

    monkeypatch.setattr(training, "train_step", step)
    assert run("full", "checkpoint.every_steps=2", "schedule.epochs=4") == 6
    error = capsys.readouterr().err.split("error    ")[1]
    assert "step-00000004.safetensors" in error
    assert "No space left" in error
    assert steps.begun == [0, 1, 2, 3, 4]
    newest, bad = checkpoint.newest(Path("full/checkpoints"))
    assert newest is not None
    assert (newest.step, bad) == (2, [])


def test_a_full_disk_at_the_last_step_is_no_success(monkeypatch, steps, capsys):
    full_disk_from(6, monkeypatch)
    assert run("full", "checkpoint.every_steps=4") == 6
    stderr = capsys.readouterr().err
    assert "No space left" in stderr
    assert "next      googlenet-train predict" not in stderr
    assert len(list(Path("full/checkpoints").iterdir())) == 1


def test_another_error_does_not_hide_that_the_last_save_failed(monkeypatch, steps, capsys):
    full_disk_from(2, monkeypatch)
    train_step = training.train_step

    def step(*arguments, **settings):
        train_step(*arguments, **settings)
        if settings["step"] == 2:
            raise UserError("something else", ExitCode.DISTRIBUTED)

    monkeypatch.setattr(training, "train_step", step)
    check = Background.check
    monkeypatch.setattr(Background, "check", lambda self: None)
    assert run("full", "checkpoint.every_steps=2") == 7
    monkeypatch.setattr(Background, "check", check)
    stderr = capsys.readouterr().err
    assert "error    something else" in stderr
    assert "warning  full/checkpoints/step-00000002.safetensors" in stderr


@posix
def test_the_log_is_on_the_disk_before_the_checkpoint_and_best_after(monkeypatch, in_folder):
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        log = Path("runs/tiny/metrics.jsonl")
        if log.exists() and os.path.samestat(os.fstat(handle), log.stat()):
            lines = log.read_text().splitlines()
            events.append(
                ("log", str(max((json.loads(line)["step"] for line in lines), default=0)))
            )
        fsync(handle)

    def record_replace(source: Path, target: Path) -> Path:
        events.append(("rename", Path(target).name))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    assert cli.main(["--config", "tiny.yaml"]) == 0
    for step in (3, 6):
        commit = events.index(("rename", f"step-{step:08d}.safetensors"))
        assert ("log", str(step)) in events[:commit]
        assert events[commit + 1 : commit + 2] == [("rename", "best.json")]


def test_an_unreadable_image_costs_no_training(steps, capsys):
    """The error stops the run as before, but what was learnt until then is saved first."""
    assert run("whole", "checkpoint.every_steps=1", "checkpoint.keep=9") == 0
    read = training.training_batch

    def batch(index, step, **settings):
        if step == 4:
            raise UserError("photo 7: damaged", ExitCode.DATA)
        return read(index, step, **settings)

    with pytest.MonkeyPatch.context() as damaged:
        damaged.setattr(training, "training_batch", batch)
        assert run("stopped") == 3
    stderr = capsys.readouterr().err
    assert "saved    at step 4; --resume goes on from there\nerror    photo 7: damaged" in stderr
    assert run("stopped", "--resume") == 0
    assert unequal("whole", "stopped", 6) == []


# --- killed and stopped, in processes of their own -----------------------------------------------

SLOW_WRITE = """
import os, time
from pathlib import Path
from googlenet_train.machine import storage
fsync = storage.fsync
def slow(handle):
    if "step-00000004" in os.readlink(f"/proc/self/fd/{handle}"):
        Path("writing").touch()
        time.sleep(SECONDS)
    fsync(handle)
storage.fsync = slow
"""


def start(folder: Path, seconds: float, *words: str) -> "subprocess.Popen[str]":
    """A run whose checkpoint of step 4 takes `seconds` to reach the disk; returns in the midst."""
    code = SLOW_WRITE.replace("SECONDS", str(seconds))
    code += "import sys\nfrom googlenet_train.cli import main\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--config", "tiny.yaml", "checkpoint.every_steps=2", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "writing").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells files by /proc")


@pytest.mark.slow
@linux
def test_killed_during_a_save_the_older_checkpoint_is_the_run(in_folder, cli):
    assert cli("--config", "tiny.yaml", "run.dir=whole", cwd=in_folder).rc == 0
    process = start(in_folder, 60, "run.dir=killed", "schedule.epochs=2")
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    process.stderr.close()
    folder = in_folder / "killed/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
        "step-00000004.safetensors.partial",
    ]
    newest, bad = checkpoint.newest(folder)
    assert newest is not None
    assert (newest.step, bad) == (3, [])
    resumed = cli("--config", "tiny.yaml", "run.dir=killed", "--resume", cwd=in_folder)
    assert resumed.rc == 0
    assert unequal(str(in_folder / "whole"), str(in_folder / "killed"), 6) == []
    assert not list(folder.glob("*.partial"))


@linux
def test_sigterm_during_a_save_still_saves_the_last_step(in_folder):
    process = start(in_folder, 2, "run.dir=stopped", "schedule.epochs=40")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    step = int(stderr.split("stopped  at step ")[1].split(",")[0])
    assert step > 4
    newest, bad = checkpoint.newest(in_folder / "stopped/checkpoints")
    assert newest is not None
    assert (newest.step, bad) == (step, [])
    # The one that was being written when the signal came is whole too.
    checkpoint.verify(checkpoint.checkpoint_path(in_folder / "stopped/checkpoints", 4))


@linux
def test_a_second_signal_does_not_wait_for_the_save(in_folder):
    process = start(in_folder, 60, "run.dir=stopped", "schedule.epochs=40")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    newest, bad = checkpoint.newest(in_folder / "stopped/checkpoints")
    assert newest is not None
    assert (newest.step, bad) == (3, [])

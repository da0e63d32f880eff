"""Signals at every part of a run's life; a run whose reader has gone."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.conftest import Start, newest, posix, unequal

pytestmark = posix

# A signal in the midst of a step: SIGNAL and STEP are replaced.
IN_A_STEP = """
import os, signal
import googlenet_train.train as training
step = training.train_step
def interrupted(*arguments, **settings):
    if settings["step"] == STEP:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    step(*arguments, **settings)
training.train_step = interrupted
"""


def in_a_step(step: int, *numbers: signal.Signals) -> str:
    words = "[" + ", ".join(f"signal.{number.name}" for number in numbers) + "]"
    return IN_A_STEP.replace("STEP", str(step)).replace("SIGNALS", words)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stop_in_a_step_saves_and_resumes_to_the_bit(
    start: Start, tiny_folder: Path, whole: Path, number: signal.Signals
) -> None:
    child = start("run", before=in_a_step(1, number))
    assert child.wait() == 128 + number
    assert newest(tiny_folder / "run") == (2, [])
    assert "stopped  at step 2, saved. Go on with the same command and --resume" in child.stderr
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


# Saves are written beside training, and what is being written when a run ends at once is lost.
PATIENT = """
import time
from pathlib import Path
inner = training.train_step
def patient(*arguments, **settings):
    while settings["step"] == 4 and not Path("run/checkpoints/step-00000003.safetensors").exists():
        time.sleep(0.01)
    inner(*arguments, **settings)
training.train_step = patient
"""


def test_a_second_stop_ends_it_at_once(start: Start, tiny_folder: Path) -> None:
    before = in_a_step(4, signal.SIGTERM, signal.SIGINT) + PATIENT
    assert start("run", before=before).wait() == 128 + signal.SIGINT
    assert newest(tiny_folder / "run") == (3, [])


def test_a_stop_while_the_run_is_opened(start: Start, tiny_folder: Path, whole: Path) -> None:
    """The lock is held and the network is being built: step 0 is saved, and nothing is lost."""
    before = """
import os, signal
from googlenet_train.run import opening
build = opening.build_model
def interrupted(*given):
    os.kill(os.getpid(), signal.SIGTERM)
    return build(*given)
opening.build_model = interrupted
"""
    assert start("run", before=before).wait() == 143
    assert newest(tiny_folder / "run") == (0, [])
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        (signal.SIGTERM, 0.05),
        (signal.SIGINT, 0.6),
        pytest.param(signal.SIGINT, 0.05, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0.6, marks=pytest.mark.slow),
    ],
)
def test_a_stop_in_start_up_leaves_the_folder_free(
    tiny_folder: Path, seconds: float, number: signal.Signals
) -> None:
    """Before there is a run the process ends by the signal, and leaves nothing in the way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "googlenet_train", "--config", "tiny.yaml"],
        cwd=tiny_folder,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts with & ignores SIGINT, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while seconds > 0.5 and "loading" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(seconds)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number)
    # Python itself, still importing, may say KeyboardInterrupt; nobody says that something failed.
    assert not re.search(r"^\w*(Error|Exception)\b", stderr, re.MULTILINE), stderr
    assert not list(tiny_folder.glob("runs/tiny/checkpoints/*"))
    # What the next start is told: no run is there.
    command = ["--config", "tiny.yaml", "data.train=none"]
    again = subprocess.run(
        [sys.executable, "-m", "googlenet_train", *command],
        cwd=tiny_folder,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 3
    assert "run      runs/tiny\n" in again.stderr


@pytest.mark.parametrize("guarded", [True, False])
def test_usr1_in_start_up_ends_nothing(start: Start, tiny_folder: Path, guarded: bool) -> None:
    before = """
import os, signal
from googlenet_train.machine import signals
from googlenet_train.run import launch
prepare = launch.prepare
def interrupted(*given, **named):
    os.kill(os.getpid(), signal.SIGUSR1)
    return prepare(*given, **named)
launch.prepare = interrupted
"""
    if not guarded:  # then the kernel's default is to end the process
        before += "signals.ignore_saves = lambda: None\n"
    code = start("run", "schedule.epochs=1", before=before).wait()
    assert code == (0 if guarded else -signal.SIGUSR1)


def test_usr1_saves_and_goes_on(start: Start, tiny_folder: Path, whole: Path) -> None:
    before = in_a_step(1, signal.SIGUSR1)
    assert start("run", "checkpoint.keep=9", before=before).wait() == 0
    names = sorted(path.name for path in (tiny_folder / "run/checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (2, 3, 6)]
    assert unequal(tiny_folder / "run", whole) == []


def test_a_stop_for_the_whole_process_group(start: Start, tiny_folder: Path, whole: Path) -> None:
    """As a batch system sends it. The loader works in threads, so nobody else is hit."""
    child = start("run", "data.workers=3", "checkpoint.every_steps=1", "schedule.epochs=40")
    child.until(lambda: list(tiny_folder.glob("run/checkpoints/step-*2.safetensors")))
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait() == 143
    step, bad = newest(tiny_folder / "run")
    assert (step >= 2, bad) == (True, [])
    assert f"stopped  at step {step}" in child.stderr
    with pytest.raises(ProcessLookupError):  # nothing of the group is left
        os.killpg(child.pid, 0)


def test_a_hung_read_is_ended_by_the_second_stop(start: Start, tiny_folder: Path) -> None:
    """A pipe that nobody writes to stands for a network disk that does not answer.

    The first signal waits for the step, which waits for the photo; the second ends it.
    """
    photo = tiny_folder / "photos/train/cat/0.jpg"
    content = photo.read_bytes()
    photo.unlink()
    os.mkfifo(photo)
    child = start("run", "checkpoint.every_steps=1", "schedule.epochs=1", "data.workers=2")
    time.sleep(1.5)
    os.kill(child.pid, signal.SIGTERM)
    child.until(lambda: "stopping at the next step" in child.stderr)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(10) == 143
    photo.unlink()
    photo.write_bytes(content)
    assert start("run", "--resume", "schedule.epochs=1").wait() == 0
    assert newest(tiny_folder / "run") == (3, [])


NOBODY_READS = """
import os
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
"""


def test_a_run_outlives_the_reader_of_its_lines(
    start: Start, tiny_folder: Path, whole: Path
) -> None:
    """`googlenet-train ... 2>&1 | head`, or a log collector that died."""
    assert start("run", before=NOBODY_READS).wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


def test_a_run_without_a_reader_is_stopped_and_saved_all_the_same(
    start: Start, tiny_folder: Path
) -> None:
    before = NOBODY_READS + in_a_step(1, signal.SIGTERM)
    assert start("run", before=before).wait() == 143
    assert newest(tiny_folder / "run") == (2, [])

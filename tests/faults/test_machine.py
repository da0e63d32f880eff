"""What a machine runs out of, and processes that outlive a run."""

import errno
import os
import signal
from pathlib import Path

import pytest
from conftest import CLASSES, draw_photos

from faults.conftest import Start, newest, posix, unequal
from googlenet_train.data import shards
from googlenet_train.data.index import open_source
from googlenet_train.data.loader import evaluation_batch
from googlenet_train.errors import ExitCode, UserError

pytestmark = posix


def pack(root: Path, source: Path, split: str) -> None:
    """Every photo in a shard of its own."""
    import tarfile

    (root / split).mkdir(parents=True)
    for photo in sorted((source / split).rglob("*.jpg")):
        name = f"{photo.parent.name}/{photo.name}"
        with tarfile.open(root / split / f"{photo.parent.name}{photo.stem}.tar", "w") as tar:
            tar.add(photo, name)


FEW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from googlenet_train.data import shards
shards._MAX_OPEN = MOST
"""


@pytest.mark.parametrize("limited", [True, False])
def test_more_shards_than_descriptors(start: Start, tiny_folder: Path, limited: bool) -> None:
    """60 shards, 48 descriptors; without our own limit the kernel's would end the run."""
    draw_photos(tiny_folder / "more", train=20, val=2)
    for split in ("train", "val"):
        pack(tiny_folder / "packed", tiny_folder / "more", split)
    limit = "shards._max_open()" if limited else "10_000"
    words = ["data.train=packed/train", "data.val=packed/val", "schedule.epochs=1"]
    child = start("run", *words, before=FEW.replace("MOST", limit))
    code = child.wait()
    if limited:
        assert code == 0, child.stderr
    else:
        assert code == 6
        assert "Too many open files; the photo is not to blame" in child.stderr


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("quarantine", [True, False])
def test_a_photo_is_not_blamed_for_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, quarantine: bool
) -> None:
    index = open_source(str(draw_photos(tmp_path, train=1) / "train"))

    def fail(files: object, i: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(index.files), "read", fail)
    with pytest.raises(UserError, match=r"not to blame.*ulimit -n") as caught:
        evaluation_batch(index, [0, 1], 32, quarantine=quarantine)
    assert caught.value.exit_code == ExitCode.STORAGE


def test_the_limit_follows_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for soft, limit in ((64, 16), (1024, 256), (resource.RLIM_INFINITY, 256)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert shards._max_open() == limit


# A fork of the run that lives on, and holds all of its descriptors, as a stray worker would.
ORPHAN = """
import os, time
import googlenet_train.train as training
step = training.train_step
def forked(*arguments, **settings):
    if settings["step"] == 4 and os.fork() == 0:
        os.setpgid(0, 0)
        open("orphan", "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    step(*arguments, **settings)
    if settings["step"] == 4:
        time.sleep(60)
training.train_step = forked
"""
INHERITED = """
import fcntl
fcntl.lockf = fcntl.flock
"""


@pytest.mark.parametrize("inherited", [False, True])
def test_an_orphan_of_a_killed_run_does_not_keep_its_folder(
    start: Start, tiny_folder: Path, whole: Path, inherited: bool
) -> None:
    """With `flock` in place of `lockf` it would."""
    lock = INHERITED if inherited else ""
    child = start("run", before=lock + ORPHAN)
    note = tiny_folder / "orphan"
    child.until(lambda: note.exists() and note.read_text())
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    orphan = int(note.read_text())
    try:
        os.kill(orphan, 0)  # alive
        resumed = start("run", "--resume", before=lock)
        if inherited:
            assert resumed.wait() == 2
            assert "another process is training there" in resumed.stderr
        else:
            assert resumed.wait() == 0
            assert unequal(tiny_folder / "run", whole) == []
    finally:
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.parametrize("flag", ["", "--resume", "--fresh"])
def test_two_runs_in_one_folder(start: Start, tiny_folder: Path, flag: str) -> None:
    first = start("run", "checkpoint.every_steps=1", "schedule.epochs=40")
    first.until(lambda: list(tiny_folder.glob("run/checkpoints/*.safetensors")))
    second = start("run", *flag.split())
    assert second.wait() == 2
    assert "another process is training there" in second.stderr
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 143
    assert newest(tiny_folder / "run")[1] == []


def test_a_decoding_thread_that_fails_ends_the_run_with_its_error(
    start: Start, tiny_folder: Path, whole: Path
) -> None:
    """There are no worker processes to kill: a thread's error reaches the step that needs it."""
    before = """
from googlenet_train.data import loader
view, calls = loader.training_image, []
def failing(*given):
    calls.append(1)
    if len(calls) == 35:
        raise ArithmeticError("a bug in a thread")
    return view(*given)
loader.training_image = failing
import traceback
traceback.print_exc = lambda: None
"""
    child = start("run", "data.workers=3", before=before)
    assert child.wait() == 1
    assert newest(tiny_folder / "run") == (3, [])
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


assert len(CLASSES) == 3  # 60 photos to train on

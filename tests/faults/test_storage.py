"""Disks that are full, fail, refuse or cannot do what they are asked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults.conftest import HERE, Start, newest, posix, unequal
from googlenet_train.machine import storage

pytestmark = posix


def slow(*values: object) -> object:
    """A case of a test that only `pytest -m slow` runs: another like it runs always."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list]]:
    """What runs on a disk of 6 MB and in read-only folders ended with, and where they lie."""
    from conftest import TINY, draw_photos

    folder = tmp_path_factory.mktemp("mounted")
    draw_photos(folder / "photos")
    (folder / "tiny.yaml").write_text(TINY)
    allowed = "mkdir d && mount -t tmpfs none d && rmdir d 2>/dev/null; test -d d"
    if shutil.which("unshare") is None or (
        subprocess.run(["unshare", "-Urm", "sh", "-c", allowed], cwd=folder, check=False).returncode
    ):
        pytest.skip("this machine lets no one mount: the injected forms of these faults run")
    command = ["unshare", "-Urm", sys.executable, str(HERE / "mounted.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def the_error(stderr: str) -> str:
    assert "Traceback" not in stderr
    assert stderr.count("error    ") == 1, stderr
    return stderr.split("error    ")[1].strip()


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(mounted, whole: Path) -> None:
    folder, answers = mounted
    code, stderr, step, bad, names = answers["full"]
    assert code == 6
    assert re.search(
        r"step-0000000\d\.safetensors: the checkpoint could not be written \(No space",
        the_error(stderr),
    )
    assert step > 0
    assert bad == []
    assert len(names) == step
    assert not any(name.endswith(".partial") for name in names)
    code, stderr = answers["with room again"]
    assert code == 0, stderr
    assert unequal(folder / "run", whole) == []


@pytest.mark.parametrize("name", ["empty", "begun"])
def test_a_read_only_folder_is_told_before_step_0(mounted, name: str) -> None:
    code, stderr, same = mounted[1][f"read-only, {name}"]
    assert code == 6
    assert f"{name}/run" in the_error(stderr)
    assert "Read-only file system" in stderr
    assert "device   " not in stderr  # the block that a run begins with
    assert same


def test_a_file_that_grows_too_large(start: Start, tiny_folder: Path, whole: Path) -> None:
    """EFBIG from the kernel itself: what a file may hold is limited below a checkpoint."""
    before = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
"""
    child = start("run", before=before)
    assert child.wait() == 6
    assert re.match(r"run/checkpoints/step-00000003.*\(File too large\)", the_error(child.stderr))
    assert newest(tiny_folder / "run") == (0, [])
    assert list((tiny_folder / "run/checkpoints").iterdir()) == []
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


# An error at what touches a file whose name matches, from the NUMBERth time on.
FAIL = """
import errno, os, re
from pathlib import Path
done = 0
def due(name):
    global done
    done += bool(re.search(r"PATTERN", name))
    return done >= NUMBER and re.search(r"PATTERN", name)
"""
FSYNC = (
    FAIL
    + """
real = os.fsync
def fsync(handle):
    if due(os.readlink(f"/proc/self/fd/{handle}")):
        raise OSError(errno.ERROR, os.strerror(errno.ERROR))
    real(handle)
os.fsync = fsync
"""
)
WRITE = (
    FAIL
    + """
import io
opened = io.open
class Full(io.FileIO):
    def write(self, data):
        super().write(data[:len(data) // 2])
        raise OSError(errno.ERROR, os.strerror(errno.ERROR))
def open_(file, mode="r", *rest, **named):
    if mode == "wb" and due(str(file)):
        return io.BufferedWriter(Full(file, "wb"))
    return opened(file, mode, *rest, **named)
io.open = open_
"""
)


def failing(code: str, pattern: str, error: str, number: int = 1) -> str:
    code = code.replace("PATTERN", pattern).replace("ERROR", error)
    return code.replace("NUMBER", str(number))


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="tells files from each other through /proc"
)


@needs_proc
@pytest.mark.parametrize(
    ("pattern", "step"),
    [
        (r"step-0+6\.safetensors\.partial$", 3),
        (r"checkpoints$", 6),  # the file is there and whole, but perhaps not for long
        (r"metrics\.jsonl$", 0),
        slow(r"tfevents", 0),
        slow(r"best\.json\.partial$", 3),
    ],
)
def test_a_disk_that_fails_at_fsync_ends_the_run(
    start: Start, tiny_folder: Path, whole: Path, pattern: str, step: int
) -> None:
    # The folder of checkpoints is synced once for each of them.
    number = 2 if pattern == "checkpoints$" else 1
    child = start("run", before=failing(FSYNC, pattern, "EIO", number))
    assert child.wait() == 6
    error = the_error(child.stderr)
    assert error.startswith("run")
    assert "Input/output error" in error
    assert "next      " not in child.stderr  # no success is claimed
    assert newest(tiny_folder / "run") == (step, [])
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


@pytest.mark.parametrize("error", ["ENOSPC", slow("EIO"), slow("EDQUOT")])
def test_a_disk_that_fails_at_a_write_ends_the_run(
    start: Start, tiny_folder: Path, whole: Path, error: str
) -> None:
    """The form that needs no right to mount: half of the file's end is written, then the error."""
    child = start("run", before=failing(WRITE, r"step-0+6", error))
    assert child.wait() == 6
    assert the_error(child.stderr).startswith("run/checkpoints/step-00000006.safetensors: ")
    assert newest(tiny_folder / "run") == (3, [])
    assert not list(tiny_folder.rglob("*.partial"))
    if error == "ENOSPC":
        assert start("run", "--resume").wait() == 0
        assert unequal(tiny_folder / "run", whole) == []


@needs_proc
def test_it_is_noticed_when_an_error_of_the_disk_is_swallowed(
    start: Start, tiny_folder: Path
) -> None:
    before = failing(FSYNC, r"step-0+6\.safetensors\.partial$", "EIO")
    before += """
from googlenet_train.machine import storage
sync = storage.fsync
def careless(handle):
    try:
        sync(handle)
    except OSError:
        pass
storage.fsync = careless
"""
    assert start("run", before=before).wait() == 0


NO_LOCKS = """
import errno, fcntl
def lockf(*given):
    raise OSError(errno.ERROR, "refused")
fcntl.lockf = lockf
"""


@pytest.mark.parametrize("error", ["ENOLCK", slow("ENOSYS")])
def test_storage_without_locks_is_named_once_and_training_goes_on(
    start: Start, tiny_folder: Path, whole: Path, error: str
) -> None:
    child = start("run", before=NO_LOCKS.replace("ERROR", error))
    assert child.wait() == 0
    assert child.stderr.count("this storage has no locks") == 1
    assert unequal(tiny_folder / "run", whole) == []


@needs_proc
@pytest.mark.parametrize("error", ["EINVAL", slow("ENOTSUP")])
def test_a_folder_that_cannot_be_synced_is_named_once(
    start: Start, tiny_folder: Path, whole: Path, error: str
) -> None:
    child = start("run", before=failing(FSYNC, r"checkpoints$", error))
    assert child.wait() == 0
    assert child.stderr.count("cannot fsync a folder") == 1
    assert unequal(tiny_folder / "run", whole) == []


@needs_proc
def test_new_folders_are_synced_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name is not on the disk takes all that lies in it along."""
    synced = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    storage.make_folder(tmp_path / "runs/x/checkpoints")
    storage.make_folder(tmp_path / "runs/x/checkpoints")
    assert synced == [str(tmp_path), str(tmp_path / "runs"), str(tmp_path / "runs/x")]

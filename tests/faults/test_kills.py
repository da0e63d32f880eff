"""SIGKILL at every call of a save, twice in a row, and at random instants of a run."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.conftest import HERE, SCRIPTS, posix

pytestmark = posix
Record = Callable[[str, object], None]


def killer(*words: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(HERE / "save_killer.py"), *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer: dict = json.loads(done.stdout)
    if "refused" in answer:
        pytest.skip(f"this machine lets strace attach to nothing: {answer['refused']}")
    return answer


def test_killed_before_within_and_after_every_call_of_a_save(record_property: Record) -> None:
    answer = killer("each")
    assert answer["failures"] == []
    assert {"create", "write", "fsync", "replace", "unlink"} <= set(answer["calls"])
    assert answer["kills"] >= 25
    record_property("kills", answer["kills"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "sign"),
    [
        ("no_temporary_file", "empty file"),
        ("old_ones_first", "unlink"),
        ("leftovers_stay", "partial"),
    ],
)
def test_it_is_noticed_when_a_save_is_careless(sabotage: str, sign: str) -> None:
    failures = killer("each", sabotage)["failures"]
    assert any(sign in failure for failure in failures)


@pytest.mark.slow
def test_killed_twice_in_a_row_within_one_save(record_property: Record) -> None:
    answer = killer("pairs")
    assert answer["failures"] == []
    assert answer["kills"] > 60
    record_property("kills", answer["kills"])


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")


@needs_strace
def test_killed_at_every_system_call_of_a_save_and_their_order(record_property: Record) -> None:
    """strace sends SIGKILL at the entry of each call; its trace shows what came after what."""
    answer = killer("strace")
    assert answer["failures"] == []
    calls = answer["calls"]
    assert answer["kills"] == len(calls) >= 15
    record_property("kills", answer["kills"])

    partial = r"[^>]*step-00000003\.safetensors\.partial>"
    writes = [i for i, call in enumerate(calls) if re.match(rf"write\(\d+<{partial}", call)]
    (synced,) = (i for i, call in enumerate(calls) if re.match(rf"fsync\(\d+<{partial}", call))
    (renamed,) = (i for i, call in enumerate(calls) if call.startswith("rename"))
    (folder,) = (
        i for i, call in enumerate(calls) if re.match(r"fsync\(\d+<[^>]*/checkpoints>", call)
    )
    (pruned,) = (i for i, call in enumerate(calls) if call.startswith("unlink"))
    # Not only the last write: nothing at all is written after the fsync.
    assert len(writes) > 1
    assert max(writes) < synced < renamed < folder < pruned
    assert "step-00000001.safetensors" in calls[pruned]


def soak(tmp_path: Path, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import soak\n{before}\n"
    code += "sys.exit(soak.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path / "soak.jsonl"), "--json", *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )


@pytest.mark.slow
def test_a_sample_of_the_soak(tmp_path: Path) -> None:
    """Kills at random instants; a soak that was stopped goes on where it was.

    Kills of the real command at full width are in test_resume.py, and in the whole soak.
    """
    done = soak(tmp_path, "--kills", "10", "--real", "0", "--calls", "2")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "soak.jsonl").read_text()
    (tmp_path / "soak.jsonl").write_text(first + '{"kind": "narr')  # torn by a kill
    done = soak(tmp_path, "--kills", "12", "--real", "0", "--calls", "4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "soak.jsonl").read_text().startswith(first)
    result = json.loads(done.stdout.splitlines()[-1])
    for kind, kills in (("narrow", 12), ("calls", 4)):
        assert result[kind]["kills"] >= kills
        assert (result[kind]["lost"], result[kind]["other_bits"]) == (0, 0)


# Each makes a run that is killed end otherwise than one that is not.
SABOTAGE = {
    "momentum is not saved": """
from googlenet_train.run import state
capture = state.capture
def without_momentum(run):
    state = capture(run)
    state.momentum = {}
    return state
import googlenet_train.run.milestones as milestones
milestones.capture = without_momentum
""",
    "a checkpoint is written in place": """
from googlenet_train import checkpoint
import time
def write(path, content):
    with path.open("wb", buffering=0) as file:
        for piece in content:
            file.write(piece)
            time.sleep(0.001)
checkpoint.write_durably = write
""",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "momentum is not saved",
        pytest.param("a checkpoint is written in place", marks=pytest.mark.long),
    ],
)
def test_the_soak_notices(tmp_path: Path, what: str) -> None:
    done = soak(tmp_path, "--kills", "10", "--real", "0", "--calls", "0", before=SABOTAGE[what])
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["narrow"]
    assert result["lost"] + result["other_bits"] > 0

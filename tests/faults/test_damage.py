"""Checkpoints that are cut, altered or empty, on the way of --resume."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

from faults.conftest import Start, posix, unequal
from googlenet_train import checkpoint
from googlenet_train.config import file as config_file
from googlenet_train.errors import UserError
from googlenet_train.run import launch, runs

pytestmark = posix
Record = Callable[[str, object], None]


@pytest.fixture
def saved(whole: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run of tiny.yaml as `run`, to be damaged; the current folder is above it."""
    shutil.copytree(whole, tiny_folder / "run")
    monkeypatch.chdir(tiny_folder)
    return tiny_folder / "run"


def resumed() -> launch.Launch | None:
    """What `--resume` is about to do before PyTorch is loaded."""
    loaded = config_file.load("tiny.yaml", ["run.dir=run", "checkpoint.keep=9"])
    return launch.prepare(loaded, resume=True, fresh=False, allow=())


def passes_over(path: Path, content: bytes) -> bool:
    """Whether a resume goes on from step 3 where step 6 is damaged like this, and names it."""
    path.write_bytes(content)
    begun = resumed()
    return begun is not None and begun.resume and takes_the_older(path)


def takes_the_older(path: Path) -> bool:
    found, bad = checkpoint.newest(path.parent)
    assert found is not None
    return found.step == 3 and [line.split(":")[0] for line in bad] == [str(path)]


def test_cut_at_20_places(saved: Path, record_property: Record) -> None:
    path = saved / "checkpoints/step-00000006.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    lengths = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1]
    lengths += [random.Random(0).randrange(header, len(whole)) for _ in range(10)]
    for length in lengths:
        assert passes_over(path, whole[:length]), length
    record_property("offsets", len(lengths))


def flips(whole: bytes) -> list[int]:
    """200 places: in the length of the header, all over it, and all over the numbers."""
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(1)
    # What `launch` believes lies in the JSON at the header's begin: it is hit on its own.
    info = whole.index(b'"info"')
    ends = whole.index(b'"sha256"')
    places = [*range(8), *(chance.randrange(info, ends) for _ in range(62))]
    places += [chance.randrange(ends, header) for _ in range(30)]
    return places + [chance.randrange(header, len(whole)) for _ in range(100)]


def test_a_byte_flipped_at_200_places(saved: Path, record_property: Record) -> None:
    path = saved / "checkpoints/step-00000006.safetensors"
    whole = path.read_bytes()
    chance = random.Random(2)
    places = flips(whole)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"step-00000006\.safetensors"):
            checkpoint.verify(path)
        if place < whole.index(b'"sha256"') and place % 2:
            assert passes_over(path, bytes(damaged)), place
    assert len(places) == 200
    record_property("offsets", len(places))


def test_it_is_noticed_when_a_header_is_believed_unverified(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip in the fingerprint would stop the run: "other images", where a file is damaged."""
    path = saved / "checkpoints/step-00000006.safetensors"
    damaged = bytearray(path.read_bytes())
    place = damaged.index(b'data.train\\": \\"', damaged.index(b"fingerprints")) + 18
    damaged[place] = ord("0") + (damaged[place] == ord("0"))
    assert passes_over(path, bytes(damaged))
    monkeypatch.setattr(runs, "_verified", checkpoint.header)
    with pytest.raises(UserError, match="no longer those"):
        resumed()


def test_it_is_noticed_when_the_checksum_is_not_compared(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved / "checkpoints/step-00000006.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1

    class Agreeable:
        def __init__(self, content: bytes) -> None:
            start = checkpoint._hash_position(bytearray(whole))
            self.stated = whole[start : start + 64].decode()

        def hexdigest(self) -> str:
            return self.stated

    whole = path.read_bytes()
    monkeypatch.setattr(checkpoint.hashlib, "sha256", Agreeable)
    path.write_bytes(damaged)
    assert checkpoint.newest(path.parent)[1] == []


def test_a_damaged_run_goes_on_to_the_same_bits(
    saved: Path, start: Start, whole: Path, tiny_folder: Path
) -> None:
    """The newest is cut, a leftover of a save lies about, and the clock was set back."""
    path = saved / "checkpoints/step-00000006.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    (saved / "checkpoints/step-00000005.safetensors.partial").write_bytes(b"half of one")
    for file in saved.rglob("*"):
        os.utime(file, (1_000_000, 1_000_000))
    child = start("run", "--resume", "checkpoint.keep=9")
    assert child.wait() == 0
    assert "step-00000006.safetensors: damaged or truncated" in child.stderr
    assert "resume   at step 3" in child.stderr
    assert unequal(tiny_folder / "run", whole) == []
    assert not list(saved.rglob("*.partial"))


def test_where_none_verifies_nothing_is_begun_anew(
    saved: Path, start: Start, tiny_folder: Path
) -> None:
    for path in (saved / "checkpoints").iterdir():
        path.write_bytes(b"")
    child = start("run", "--resume")
    assert child.wait() == 4
    assert child.stderr.count("empty file") == 2
    assert "step 0" not in child.stderr
    assert sorted(path.stat().st_size for path in (saved / "checkpoints").iterdir()) == [0, 0]


def test_a_torn_log_is_mended(saved: Path, start: Start, whole: Path, tiny_folder: Path) -> None:
    """A power cut leaves half lines, zeros and bytes of other files in what was not synced."""
    (saved / "checkpoints/step-00000006.safetensors").unlink()
    with (saved / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "epoch"\n7\n[]\n{"epoch": 2}\n\xff\xfe\0\0\0{"st')
    assert start("run", "--resume").wait() == 0
    assert unequal(tiny_folder / "run", whole) == []


def test_a_checkpoint_of_a_later_version_is_not_guessed_at(
    saved: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = checkpoint.load(saved / "checkpoints/step-00000006.safetensors")
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    checkpoint.save(saved / "checkpoints", state)
    (saved / "checkpoints/step-00000003.safetensors").unlink()
    child = start("run", "--resume")
    assert child.wait() == 4
    assert f"written by a newer googlenet-train (format {checkpoint.FORMAT})" in child.stderr


assert "batch_size: 8" in TINY  # 30 images: steps 3 and 6 are the ends of its epochs

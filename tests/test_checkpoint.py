"""Checkpoints: whole or absent, damage always noticed, old ones kept until the new one is good."""

import errno
import os
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from googlenet_train import checkpoint
from googlenet_train.checkpoint import TrainState, checkpoint_path, checkpoints
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import storage


def state(step: int = 7) -> TrainState:
    generator = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return TrainState(
        step=step,
        model={
            "conv.weight": normal(4, 3, 5, 5).to(memory_format=torch.channels_last),
            "norm.num_batches_tracked": torch.tensor(2**40 + step),
            "half": normal(6).bfloat16(),
            "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
            "empty": torch.empty(0, 3),
        },
        momentum={"conv.weight": normal(4, 3, 5, 5)},
        ema={"0.9": {"conv.weight": normal(4, 3, 5, 5)}, "0.99": {"a/b": normal(2)}},
        window={"sums": normal(8)},
        info={"classes": ["ärmel", 'a "quoted" one', '"sha256":"' + "0" * 64 + '"'], "best": {}},
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def refused(call, *arguments, code: ExitCode = ExitCode.CHECKPOINT) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert caught.value.exit_code == code
    return str(caught.value)


def test_round_trip_is_equal_to_the_bit(tmp_path):
    before = state()
    after = checkpoint.load(checkpoint.save(tmp_path, before))
    assert (after.step, after.info) == (before.step, before.info)
    pairs = [
        (before.model, after.model),
        (before.momentum, after.momentum),
        (before.window, after.window),
        *((before.ema[decay], after.ema[decay]) for decay in before.ema),
    ]
    assert after.ema.keys() == before.ema.keys()
    for old, new in pairs:
        assert new.keys() == old.keys()
        for name, tensor in old.items():
            assert (new[name].dtype, new[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(new[name]) == bits(tensor), name


def test_the_file_is_plain_safetensors(tmp_path):
    path = checkpoint.save(tmp_path, state(12345))
    assert path.name == "step-00012345.safetensors"
    tensors = safetensors.torch.load_file(path)
    assert {"model/conv.weight", "momentum/conv.weight", "ema/0.99/a/b"} <= tensors.keys()
    assert torch.equal(tensors["model/half"], state(12345).model["half"])


def test_every_truncation_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, state())
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, len(whole) - 1, *range(10, len(whole), len(whole) // 14)]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(checkpoint.load, path)
    assert "empty" in refused(checkpoint.load, _written(path, b""))


def test_every_flipped_byte_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, state())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    places = [chance.randrange(8) for _ in range(5)]
    places += [chance.randrange(8, header) for _ in range(25)]
    places += [chance.randrange(header, len(whole)) for _ in range(25)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        assert str(path) in refused(checkpoint.load, path)
        refused(checkpoint.verify, path)
    checkpoint.verify(_written(path, whole))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_trailing_bytes_are_noticed(tmp_path):
    path = checkpoint.save(tmp_path, state())
    path.write_bytes(path.read_bytes() + b"\0")
    refused(checkpoint.load, path)


def test_a_foreign_safetensors_file_is_named_as_such(tmp_path):
    path = checkpoint_path(tmp_path, 3)
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    assert "no checkpoint of googlenet-train" in refused(checkpoint.load, path)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    assert "No such file" in refused(checkpoint.load, checkpoint_path(tmp_path, 1))
    checkpoint_path(tmp_path, 2).mkdir()
    assert "directory" in refused(checkpoint.load, checkpoint_path(tmp_path, 2))


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = checkpoint.save(tmp_path, state())
    monkeypatch.undo()
    message = refused(checkpoint.load, path)
    assert "format 2" in message
    assert "update" in message


def test_order_is_by_step_and_not_by_time(tmp_path):
    for step in (100_000_000, 20, 3):  # one has nine digits: as text it would come before 20
        os.utime(checkpoint.save(tmp_path, state(step)), (1_000_000 - step % 1000,) * 2)
    assert [checkpoint.step_of(p) for p in checkpoints(tmp_path)] == [3, 20, 100_000_000]
    newest, bad = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (newest.step, bad) == (100_000_000, [])


def test_other_files_in_the_folder_are_no_checkpoints(tmp_path):
    path = checkpoint.save(tmp_path, state(5))
    content = path.read_bytes()
    for name in ("step-00000009.safetensors.partial", "step-9.safetensors", "step-00000008.pt"):
        (tmp_path / name).write_bytes(content[:100])
    assert checkpoints(tmp_path) == [path]
    newest, bad = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (newest.step, bad) == (5, [])


def test_what_a_crash_left_half_written_goes_with_the_next_save(tmp_path):
    (tmp_path / "step-00000004.safetensors.partial").write_bytes(b"half")
    path = checkpoint.save(tmp_path, state(5))
    assert list(tmp_path.iterdir()) == [path]


def test_newest_passes_over_damaged_ones_and_names_them(tmp_path):
    paths = [checkpoint.save(tmp_path, state(step)) for step in (1, 2, 3, 4)]
    paths[3].write_bytes(paths[3].read_bytes()[:-5])
    paths[2].write_bytes(b"")
    newest, bad = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    assert [line.split(":")[0] for line in bad] == [str(paths[3]), str(paths[2])]


def test_newest_of_no_checkpoints_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "absent") == (None, [])


def test_where_none_verifies_it_stops_and_names_all(tmp_path):
    paths = [checkpoint.save(tmp_path, state(step)) for step in (1, 2)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    message = refused(checkpoint.newest, tmp_path)
    assert all(str(path) in message for path in paths)
    assert "--fresh" in message


def test_the_header_tells_the_info_and_damage_empties_it(tmp_path):
    path = checkpoint.save(tmp_path, state())
    assert checkpoint.header(path) == state().info
    assert checkpoint.header(_written(path, b"")) == {}
    assert checkpoint.header(tmp_path / "absent") == {}


def kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoints(folder)]


def test_prune_keeps_the_newest_and_the_protected(tmp_path):
    paths = [checkpoint.save(tmp_path, state(step)) for step in range(1, 7)]
    checkpoint.prune(tmp_path, paths[-1], 3, [paths[0]])
    assert kept(tmp_path) == [1, 4, 5, 6]
    checkpoint.prune(tmp_path, paths[-1], 0)
    assert kept(tmp_path) == [5, 6]
    checkpoint.prune(tmp_path, paths[-1], 9)
    assert kept(tmp_path) == [5, 6]


def test_prune_deletes_nothing_unless_the_new_one_verifies(tmp_path):
    paths = [checkpoint.save(tmp_path, state(step)) for step in (1, 2, 3)]
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    message = refused(checkpoint.prune, tmp_path, paths[-1], 2, code=ExitCode.STORAGE)
    assert str(paths[-1]) in message
    assert kept(tmp_path) == [1, 2, 3]


def test_a_damaged_one_that_was_passed_over_counts_for_nothing_for_good(tmp_path):
    paths = [checkpoint.save(tmp_path, state(step)) for step in (80, 90, 100, 105)]
    paths[2].write_bytes(b"damaged")
    checkpoint.prune(tmp_path, paths[3], 2, passed_over=[paths[2]])
    assert kept(tmp_path) == [90, 100, 105]
    paths[2].unlink()
    again = checkpoint.save(tmp_path, state(100))  # the run has come past that step once more
    checkpoint.prune(tmp_path, again, 2, passed_over=[paths[2]])
    assert kept(tmp_path) == [90, 100, 105]


def test_a_damaged_one_of_a_later_step_counts_for_nothing(tmp_path):
    """Resuming passed over it; the run has not come there again, and must not lose its own."""
    paths = [checkpoint.save(tmp_path, state(step)) for step in (1, 2, 3, 9)]
    paths[-1].write_bytes(b"")
    checkpoint.prune(tmp_path, paths[2], 2)
    assert kept(tmp_path) == [2, 3, 9]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("moment", ["write", "fsync", "rename", "fsync_folder"])
def test_failing_storage_stops_and_leaves_the_earlier_ones(tmp_path, monkeypatch, number, moment):
    before = checkpoint.save(tmp_path, state(1)).read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    if moment == "write":
        opened = Path.open

        class Full:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, content):
                self.file.write(content[: len(content) // 2])
                fail()

        monkeypatch.setattr(Path, "open", lambda path, mode: Full(opened(path, mode)))
    elif moment == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(storage, moment, fail)
    message = refused(checkpoint.save, tmp_path, state(2), code=ExitCode.STORAGE)
    monkeypatch.undo()

    assert str(checkpoint_path(tmp_path, 2)) in message
    assert os.strerror(number) in message
    assert checkpoint_path(tmp_path, 1).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    newest, bad = checkpoint.newest(tmp_path)
    assert newest is not None
    # Where only the folder's fsync failed, the file itself is there and whole.
    assert (newest.step, bad) == (2 if moment == "fsync_folder" else 1, [])


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
def test_a_folder_that_cannot_be_synced_is_named_once_and_training_goes_on(
    tmp_path, monkeypatch, capsys
):
    storage.warn_once.cache_clear()
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("tells files from folders through /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    for step in (1, 2):
        checkpoint.load(checkpoint.save(tmp_path, state(step)))
    assert capsys.readouterr().err.count("warning") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
def test_written_then_synced_then_renamed_then_folder_synced(tmp_path, monkeypatch):
    """A power cut at any instant leaves the old file or the whole new one."""
    final = checkpoint_path(tmp_path, 7)
    partial = final.with_name(final.name + ".partial")
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            events.append("fsync folder")
        else:
            assert os.path.samestat(os.fstat(handle), partial.stat())
            events.append(f"fsync {os.fstat(handle).st_size} bytes")
        fsync(handle)

    def record_replace(source: Path, target: Path) -> Path:
        assert (source, Path(target)) == (partial, final)
        assert not final.exists()
        events.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    path = checkpoint.save(tmp_path, state(7))
    assert events == [f"fsync {path.stat().st_size} bytes", "rename", "fsync folder"]

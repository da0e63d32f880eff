"""The kept index: quick where nothing changed, noticed where something did, never in the way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from googlenet_train.data import folders, index_cache
from googlenet_train.data.index import Index, open_source
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs import data_index

LONG_AGO = time.time_ns() - 3_600_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone; any set of photos is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_PHOTOS", 1)
    monkeypatch.setattr(index_cache, "_SETTLING_NS", 0)
    return tmp_path / "cache/googlenet-train"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("a/1.jpg", "a/deep/2.jpg", "a/deep/er/3.jpg", "b/4.jpg", "b/5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        os.utime(root / name, ns=(LONG_AGO, LONG_AGO))
    time.sleep(0.02)  # the clock of a file system ticks a few hundred times a second
    return root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The roots that were really scanned."""
    seen: list[Path] = []
    scan = folders.scan

    def watched(root: Path) -> folders.FolderScan:
        seen.append(root)
        return scan(root)

    monkeypatch.setattr(folders, "scan", watched)
    return seen


def names(index: Index) -> list[str]:
    return [index.name(i) for i in range(len(index))]


def same_as_image_folder(index: Index, root: Path) -> bool:
    reference = ImageFolder(str(root)).samples
    return list(zip(names(index), index.labels.tolist(), strict=True)) == reference


def test_a_second_start_is_the_same_and_scans_nothing(source, scans, cache):
    first = open_source(str(source))
    second = open_source(str(source))
    assert scans == [source]
    assert [path.suffix for path in cache.iterdir()] == [".index"]
    assert same_as_image_folder(second, source)
    assert (second.classes, second.fingerprint()) == (first.classes, first.fingerprint())
    assert not second.labels.flags.writeable
    # Another way to the same folder finds the same index, and names its photos by that way.
    (source.parent / "link").symlink_to(source)
    linked = open_source(str(source.parent / "link"))
    assert scans == [source]
    assert linked.name(0) == str(source.parent / "link/a/1.jpg")


def add(root: Path) -> None:
    (root / "a/deep/er/new.jpg").touch()


def add_class(root: Path) -> None:
    (root / "c").mkdir()
    (root / "c/6.jpg").touch()


def remove(root: Path) -> None:
    (root / "b/5.png").unlink()


def rename(root: Path) -> None:
    (root / "a/deep/2.jpg").rename(root / "a/deep/7.jpg")


def rename_over(root: Path) -> None:
    (root / "new").write_bytes(b"new")
    (root / "new").replace(root / "b/4.jpg")


def rename_class(root: Path) -> None:
    (root / "b").rename(root / "B")


def replace_folder_with_its_times(root: Path) -> None:
    """As `rsync -a` from another set would leave it."""
    before = (root / "b").stat()
    (root / "b").rename(root.parent / "old")
    (root / "b").mkdir()
    (root / "b/other.jpg").touch()
    os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(root, ns=(before.st_atime_ns, root.stat().st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [add, add_class, remove, rename, rename_over, rename_class, replace_folder_with_its_times],
)
def test_changed_folders_are_noticed(source, scans, change):
    open_source(str(source))
    change(source)
    index = open_source(str(source))
    assert scans == [source, source]
    assert same_as_image_folder(index, source)
    time.sleep(0.02)
    open_source(str(source), rescan=True)
    assert same_as_image_folder(open_source(str(source)), source)
    assert len(scans) == 3


def test_changes_behind_a_link_are_noticed(source, scans):
    elsewhere = source.parent / "elsewhere"
    (elsewhere / "v1").mkdir(parents=True)
    (elsewhere / "v1/1.jpg").touch()
    (source / "c").symlink_to(elsewhere / "v1")
    time.sleep(0.02)
    open_source(str(source))
    (elsewhere / "v1/2.jpg").touch()
    assert len(open_source(str(source))) == 7
    (source / "c").unlink()
    (source / "c").symlink_to(elsewhere / "v2")  # not mounted as yet
    assert len(open_source(str(source))) == 5
    (elsewhere / "v1").rename(elsewhere / "v2")
    assert len(open_source(str(source))) == 7


def test_folders_that_just_changed_are_not_trusted(source, scans, cache, monkeypatch):
    monkeypatch.setattr(index_cache, "_SETTLING_NS", 3_600_000_000_000)
    open_source(str(source))
    open_source(str(source))
    assert len(scans) == 2
    assert not cache.exists()


def test_small_sets_are_scanned_at_every_start(source, scans, cache, monkeypatch):
    monkeypatch.setattr(index_cache, "MIN_PHOTOS", 6)
    open_source(str(source))
    open_source(str(source))
    assert len(scans) == 2
    assert not cache.exists()


def cut(kept: bytes) -> bytes:
    return kept[:-1]


def flip(kept: bytes) -> bytes:
    return kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:]


def flip_in_header(kept: bytes) -> bytes:
    return kept[:60] + bytes([kept[60] ^ 1]) + kept[61:]


def other_version(kept: bytes) -> bytes:
    return kept.replace(b"index 2 ", b"index 0 ", 1)


@pytest.mark.parametrize(
    "damage", [cut, flip, flip_in_header, other_version, lambda _: b"", lambda _: b"\xff\n\n"]
)
def test_a_damaged_or_foreign_index_is_made_anew(source, scans, cache, damage):
    open_source(str(source))
    [path] = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same_as_image_folder(open_source(str(source)), source)
    assert len(scans) == 2
    open_source(str(source))
    assert len(scans) == 2  # and it was mended


def test_where_no_index_can_be_kept_it_works_without(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(str(source))) == 5
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert len(open_source(str(source))) == 5
    assert capsys.readouterr() == ("", "")


def test_the_place_is_the_users_cache_folder(tmp_path, monkeypatch):
    assert index_cache.place(tmp_path).parent == tmp_path / "cache/googlenet-train"
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    for relative in ("", "relative/path"):  # which the standard says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert index_cache.place(tmp_path).parent == tmp_path / "me/.cache/googlenet-train"


def test_slow_storage_is_read_by_many_threads_at_once(source, monkeypatch):
    for n in range(40):
        (source / f"class{n:02}").mkdir()
        (source / f"class{n:02}/1.jpg").touch()
    scandir = os.scandir

    def far_away(path):
        time.sleep(0.02)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", far_away)
    began = time.perf_counter()
    index = open_source(str(source))
    assert time.perf_counter() - began < 40 * 0.02
    assert same_as_image_folder(index, source)


def overwrite(path: Path, when: int) -> None:
    path.write_bytes(b"edited")
    os.utime(path, ns=(when, when))


def test_a_photo_overwritten_during_a_run_is_told(source):
    index = open_source(str(source))
    assert index.read(0) == b"a/1.jpg"
    overwrite(source / "a/1.jpg", time.time_ns())
    with pytest.raises(UserError) as caught:
        index.read(0)
    assert caught.value.exit_code == ExitCode.DATA
    assert str(caught.value) == (
        f"'{source}/a/1.jpg' was overwritten while the data set was in use, so that epochs would "
        f"see different images; run `googlenet-train data index {source}`, then start again"
    )
    assert index.read(3) == b"b/4.jpg"
    assert data_index.main([str(source)]) == ExitCode.DONE
    assert open_source(str(source)).read(0) == b"edited"


def test_a_photo_edited_between_two_starts_is_named_once_and_read(source, scans, capsys):
    open_source(str(source))
    for name in ("a/1.jpg", "b/4.jpg"):
        overwrite(source / name, time.time_ns())
    index = open_source(str(source))
    assert len(scans) == 1  # the folder's times do not show it
    assert [index.read(i) for i in (0, 3, 0)] == [b"edited"] * 3
    assert capsys.readouterr().err == (
        f"warning  '{source}/a/1.jpg' was overwritten after the data set was indexed; it is read "
        f"as it is now. `googlenet-train data index {source}` indexes anew\n"
    )
    assert data_index.main([str(source)]) == ExitCode.DONE
    capsys.readouterr()
    index = open_source(str(source))
    assert [index.read(i) for i in (0, 3)] == [b"edited"] * 2
    assert capsys.readouterr().err == ""


def test_a_camera_with_a_wrong_clock_is_no_fault(source, capsys):
    overwrite(source / "a/1.jpg", time.time_ns() + 3_600_000_000_000)
    assert open_source(str(source)).read(0) == b"edited"
    assert capsys.readouterr().err == ""


def test_a_thousand_folders_are_looked_at_in_under_a_second(tmp_path, scans):
    for n in range(1000):
        (tmp_path / f"set/{n // 10}/{n}").mkdir(parents=True)
        (tmp_path / f"set/{n // 10}/{n}/1.jpg").touch()
    source = str(tmp_path / "set")
    time.sleep(0.02)
    open_source(source)
    began = time.perf_counter()
    open_source(source)
    assert time.perf_counter() - began < 1
    (tmp_path / "set/42/421/2.jpg").touch()
    assert len(open_source(source)) == 1001
    assert len(scans) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_stays_flat_over_epochs():
    script = """
import os
from pathlib import Path
import numpy as np
from googlenet_train.data.folders import FolderFiles
from googlenet_train.data.index import Index
from googlenet_train.data.names import pack_names
from googlenet_train.data.order import permutation

count = 1_000_000
names = pack_names([f"n{i // 1000:08}/n{i // 1000:08}_{i}.JPEG" for i in range(k, k + 1000)]
                   for k in range(0, count, 1000))
labels = np.arange(count, dtype=np.int32) // 1000
index = Index(tuple(map(str, range(1000))), labels, FolderFiles(Path("/x"), names, 0, 0))
for epoch in range(7):
    for i in permutation(0, epoch, count)[:10_000].tolist():
        index.name(i), index.labels[i]
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    print(resident * os.sysconf("SC_PAGE_SIZE"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    # The allocator finds its size in the first two; a list of paths would be copied, 150 MB.
    epochs = [int(resident) for resident in done.stdout.split()][2:]
    assert len(epochs) == 5
    assert max(epochs) - min(epochs) < 2e6


def test_verb_index_counts_and_says_where_the_index_lies(source, cache, capsys):
    assert data_index.main([str(source)]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    [path] = cache.iterdir()
    assert lines[0].startswith("photos    5 in 2 classes, found in 0.")
    assert lines[1:] == ["smallest  2 (b)", "largest   3 (a)", f"kept in   {path}"]


def test_verb_index_scans_though_an_index_is_kept(source, scans, capsys):
    open_source(str(source))
    assert data_index.main([str(source), "--json"]) == ExitCode.DONE
    assert len(scans) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["photos"], answer["classes"]) == (5, 2)
    assert answer["smallest"] == {"class": "b", "photos": 2}
    assert answer["largest"] == {"class": "a", "photos": 3}
    assert Path(answer["kept_in"]).is_file()


def test_verb_index_says_why_nothing_is_kept(source, tmp_path, monkeypatch, capsys):
    def why(where: object) -> str:
        assert data_index.main([str(where)]) == ExitCode.DONE
        return capsys.readouterr().out.splitlines()[-1]

    assert why("shipped:clothing/val").startswith("not kept  only the index of a folder")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be written" in why(source)
    monkeypatch.setattr(index_cache, "MIN_PHOTOS", 10_000)
    assert why(source).startswith("not kept  fewer than 10,000 photos")

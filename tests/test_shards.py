"""Tar shards: the same photos as the folder, read in place; broken ones named; the shipped ones."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from googlenet_train.data import shards as shards_module
from googlenet_train.data.index import open_source
from googlenet_train.errors import ExitCode, UserError

LONG = "x" * 150 + "/" + "y" * 150 + ".jpg"


def write_tar(path: Path, *members: str, format: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    """A tar whose members hold their own names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:
        for name in members:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(source))
    assert caught.value.exit_code == ExitCode.DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_format(tmp_path, format):
    members = ["b/2.jpg", "a/1.JPG", "b/sub/ü.png", "b/notes.txt", "a/1.cls", "flat.jpg"]
    members += ["a/._1.jpg", "__MACOSX/a/1.jpg"]
    if format != tarfile.USTAR_FORMAT:  # which has no room for it
        members.append(f"b/{LONG}")
    index = open_source(str(write_tar(tmp_path / "s.tar", *members, format=format)))
    assert index.classes == ("a", "b")
    expected = ["b/2.jpg", "a/1.JPG", "b/sub/ü.png", *(m for m in members if LONG in m)]
    assert [index.name(i) for i in range(len(index))] == [f"s.tar:{name}" for name in expected]
    assert [index.read(i).decode() for i in range(len(index))] == expected
    assert [index.classes[label] for label in index.labels] == [name[0] for name in expected]


def test_tar_of_a_folder_by_the_tar_command(tmp_path):
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(name.encode())
    # "." makes the members begin with "./"
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "set", arcname=".")
    folder, shard = open_source(str(tmp_path / "set")), open_source(str(tmp_path / "s.tar"))
    assert shard.classes == folder.classes
    assert {shard.read(i): shard.labels[i] for i in range(2)} == {
        folder.read(i): folder.labels[i] for i in range(2)
    }


def test_a_folder_of_shards_is_one_data_set(tmp_path):
    write_tar(tmp_path / "set/train-1.tar", "b/3.jpg", "c/4.jpg")
    write_tar(tmp_path / "set/train-0.tar", "c/1.jpg", "a/2.jpg")
    index = open_source(str(tmp_path / "set"))
    assert index.classes == ("a", "b", "c")
    assert index.labels.tolist() == [2, 0, 1, 2]
    assert index.name(3) == "train-1.tar:c/4.jpg"
    assert index.read(3) == b"c/4.jpg"


@pytest.mark.parametrize("way", ["pread", "more shards than descriptors", "no pread"])
def test_reads_from_many_threads(tmp_path, monkeypatch, way):
    if way == "no pread":
        monkeypatch.delattr(os, "pread")
    if way == "more shards than descriptors":
        monkeypatch.setattr(shards_module, "_MAX_OPEN", 2)
    for shard in range(5):
        write_tar(tmp_path / f"{shard}.tar", *(f"c/{shard}-{i}.jpg" for i in range(20)))
    index = open_source(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(index.read, range(100)))
    assert [f"c/{n // 20}-{n % 20}.jpg".encode() for n in range(100)] == read


def test_descriptors_are_closed_with_the_index_and_stay_behind_when_pickled(tmp_path):
    index = open_source(str(write_tar(tmp_path / "s.tar", "a/1.jpg")))
    assert index.read(0) == b"a/1.jpg"
    (descriptor,) = index.files._open.values()
    copy = pickle.loads(pickle.dumps(index))
    assert not copy.files._open
    assert copy.read(0) == b"a/1.jpg"
    del index
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_fingerprint_knows_sizes_but_not_the_place(tmp_path):
    here = open_source(str(write_tar(tmp_path / "here/s.tar", "a/1.jpg"))).fingerprint()
    assert here == open_source(str(write_tar(tmp_path / "there/t.tar", "a/1.jpg"))).fingerprint()
    with tarfile.open(tmp_path / "longer.tar", "w") as tar:
        member = tarfile.TarInfo("a/1.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert here != open_source(str(tmp_path / "longer.tar")).fingerprint()


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path, compression):
    path = write_tar(tmp_path / f"s.tar.{compression}", "a/1.jpg", mode=f"w:{compression}")
    assert "is compressed, so it cannot be read in place; unpack it to .tar" in refusal(path)
    assert "is compressed" in refusal(path.rename(tmp_path / "s.tar"))
    assert "is compressed" in refusal(tmp_path)


def test_shards_cut_short_are_refused_wherever_the_cut_is(tmp_path):
    whole = write_tar(tmp_path / "s.tar", "a/1.jpg", "a/2.jpg", format=tarfile.USTAR_FORMAT)
    data = whole.read_bytes()
    assert len(open_source(str(whole))) == 2
    for cut in (0, 100, 512, 515, 1024, 1300, 1536, 1540, 2048, 2100):
        whole.write_bytes(data[:cut])
        message = refusal(whole)
        assert message.startswith(f"shard '{whole}' is ")
        assert "copy or pack it again" in message
    whole.write_bytes(data[:1540])
    assert "is cut short at byte 1540 within 'a/2.jpg'" in refusal(whole)


def test_a_damaged_header_in_the_middle_does_not_end_the_shard_quietly(tmp_path):
    path = write_tar(tmp_path / "s.tar", "a/1.jpg", "a/2.jpg", format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 20] ^= 0xFF
    path.write_bytes(data)
    assert "is damaged at byte 1024" in refusal(path)


def test_a_shard_cut_short_after_it_was_indexed(tmp_path):
    path = write_tar(tmp_path / "s.tar", "a/1.jpg", format=tarfile.USTAR_FORMAT)
    index = open_source(str(path))
    path.write_bytes(path.read_bytes()[:515])
    with pytest.raises(UserError, match=r"'s\.tar:a/1\.jpg' ends after 3 of 7 bytes") as caught:
        index.read(0)
    assert caught.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize("name", ["../a/1.jpg", "a/../../1.jpg", "/a/1.jpg", "a/.."])
def test_paths_that_leave_the_archive_are_refused(tmp_path, name):
    message = refusal(write_tar(tmp_path / "s.tar", "a/1.jpg", name))
    assert f"holds the path '{name}', which leaves the archive" in message


def test_photos_twice_are_refused(tmp_path):
    message = refusal(write_tar(tmp_path / "one.tar", "a/1.jpg", "./a/1.jpg"))
    assert message.endswith("holds 'a/1.jpg', which is in 'one.tar' already; remove one")
    write_tar(tmp_path / "set/0.tar", "a/1.jpg")
    write_tar(tmp_path / "set/1.tar", "a/1.jpg")
    assert "which is in '0.tar' already" in refusal(tmp_path / "set")


def test_linked_photos_are_refused_and_other_links_are_no_matter(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a/1.jpg"))
        for name in ("a/notes.txt", "a/2.jpg"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, "a/1.jpg"
            tar.addfile(link)
    assert "holds 'a/2.jpg' as a link" in refusal(tmp_path / "s.tar")


def test_tars_without_class_folders(tmp_path):
    # ImageNet's own archives are of this kind.
    path = write_tar(tmp_path / "n01440764.tar", "n01440764_10026.JPEG")
    assert "holds no photo in a class folder; expected members <class>/<photo>.jpg" in refusal(path)


def test_training_and_validation_are_not_mixed(tmp_path):
    write_tar(tmp_path / "set/train.tar", "a/1.jpg")
    write_tar(tmp_path / "set/val.tar", "a/2.jpg")
    assert "holds shards for training and for validation" in refusal(tmp_path / "set")
    path = write_tar(tmp_path / "all.tar", "train/a/1.jpg", "val/a/2.jpg")
    assert "holds train/ and val/, which are no classes; pack each" in refusal(path)


def test_shipped_photos():
    train, val = open_source("shipped:clothing/train"), open_source("shipped:clothing/val")
    assert len(train) == 3068
    assert len(val) == 341
    assert train.classes == val.classes
    assert train.counts().tolist() == [241, 123, 455, 184, 468, 290, 198, 202, 112, 795]
    for index in (train, val):
        for i in range(0, len(index), 97):
            with Image.open(io.BytesIO(index.read(i))) as photo:
                photo.load()
                assert photo.mode == "RGB"
                assert min(photo.size) == 96
                assert not photo.getexif()


def test_packing_turns_shrinks_and_repeats_to_the_byte(tmp_path):
    source = tmp_path / "src"
    for name, size, orientation in [
        ("train/b/wide", (300, 150), 1),
        ("train/a/turned", (300, 150), 6),
        ("train/a/deep/small", (50, 40), 1),
        ("val/a/one", (96, 200), 1),
    ]:
        image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50)
        exif = Image.Exif()
        exif[0x0112] = orientation
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(source / f"{name}.jpg", exif=exif, comment=b"secret")

    script = Path(__file__).parent.parent / "scripts" / "make_quickstart.py"
    repository = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    printed = [
        subprocess.run(
            [sys.executable, script, source, "--out", tmp_path / out],
            env=repository,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for out in ("first", "second")
    ]
    for shard in ("train.tar", "val.tar"):
        data = (tmp_path / "first" / shard).read_bytes()
        assert data == (tmp_path / "second" / shard).read_bytes()
        assert b"secret" not in data
    assert "train.tar: 3 photos, " in printed[0]

    with tarfile.open(tmp_path / "first/train.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}

    index = open_source(str(tmp_path / "first/train.tar"))
    sizes = {}
    for i in range(len(index)):
        with Image.open(io.BytesIO(index.read(i))) as photo:
            assert photo.mode == "RGB"
            assert not photo.getexif()
            sizes[index.name(i)] = photo.size
    assert sizes == {
        "train.tar:a/deep/small.jpg": (50, 40),
        "train.tar:a/turned.jpg": (96, 192),
        "train.tar:b/wide.jpg": (192, 96),
    }

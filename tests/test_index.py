"""Indexing folders: the order of ImageFolder, odd names and links, one clear line per mistake."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from googlenet_train.data.folders import left_out
from googlenet_train.data.index import Index, check_same_classes, open_source, with_classes
from googlenet_train.data.names import printable
from googlenet_train.errors import ExitCode, UserError


def fill(root: Path, *names: str) -> Path:
    """Files whose bytes are their names: an index never looks at pixels."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def refusal(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(source))
    assert caught.value.exit_code == ExitCode.DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(index: Index) -> list[str]:
    return [index.name(i) for i in range(len(index))]


def test_order_is_that_of_image_folder(tmp_path):
    fill(
        tmp_path,
        "b/2.jpg",
        "b/10.JPEG",
        "b/sub/1.png",
        "b/sub-2/1.png",
        "b/sub/deep/x.webp",
        "b/sub.d/1.PNG",
        "b/zz.txt",
        "B/1.jpg",
        "a b/ü.tiff",
        "a b/Z.bmp",
        "a/é/1.ppm",
        "a/0/1.pgm",
        "a/0/noend",
        "LICENSE",
        "root.jpg",
    )
    index = open_source(str(tmp_path))
    reference = ImageFolder(str(tmp_path))
    assert index.classes == tuple(reference.classes)
    assert names(index) == [path for path, _ in reference.samples]
    assert index.labels.tolist() == [label for _, label in reference.samples]
    assert index.counts().tolist() == np.bincount(reference.targets).tolist()
    assert not index.labels.flags.writeable


def test_reads_from_many_threads(tmp_path):
    index = open_source(str(fill(tmp_path, *(f"c{i % 3}/{i}.jpg" for i in range(60)))))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(index.read, range(60)))
    assert read == [name.removeprefix(f"{tmp_path}/").encode() for name in names(index)]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    fill(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", "a/__MACOSX/3.jpg")
    fill(tmp_path, ".ipynb_checkpoints/1.jpg", "__MACOSX/a/1.jpg")
    fill(tmp_path, "@eaDir/1.jpg", "a/@eaDir/2.jpg/SYNOPHOTO_THUMB_M.jpg")
    index = open_source(str(tmp_path))
    assert index.classes == ("a",)
    assert names(index) == [str(tmp_path / "a/1.jpg")]


def test_photos_in_a_folder_with_a_leading_dot_are_told(tmp_path):
    fill(tmp_path, "a/1.jpg", "0.jpg", ".hats/2.jpg", ".hats/1.jpg", ".hats/._1.jpg", ".hats/x.txt")
    fill(tmp_path, ".git/objects/1.jpg", "@eaDir/1.jpg", "a/.cache/1.jpg")
    endings, loose = left_out(tmp_path, 100)
    assert not endings
    assert loose == ["0.jpg", ".hats/1.jpg", ".hats/2.jpg"]


def test_class_names_are_composed_whatever_wrote_the_folders(tmp_path):
    composed, apart = "H\u00fcte", "Hu\u0308te"
    here = open_source(str(fill(tmp_path / "mac", f"{apart}/1.jpg", "Hut/2.jpg", "Hz/3.jpg")))
    there = open_source(str(fill(tmp_path / "pc", f"{composed}/1.jpg", "Hut/2.jpg", "Hz/3.jpg")))
    assert here.classes == there.classes == ("Hut", "Hz", composed)
    assert here.labels.tolist() == [0, 1, 2]
    if sys.platform == "linux":  # others give names their own form
        assert here.files.names[2] == f"{apart}/1.jpg"
    assert here.read(2).decode().endswith("te/1.jpg")
    assert check_same_classes(there, here).labels.tolist() == here.labels.tolist()


def test_an_older_run_may_have_classes_that_are_not_composed(tmp_path):
    val = open_source(str(fill(tmp_path, "H\u00fcte/1.jpg", "b/2.jpg")))
    assert val.classes == ("H\u00fcte", "b")
    moved = with_classes(val, ["a", "b", "Hu\u0308te"])
    assert moved.labels.tolist() == [2, 1]
    assert moved.classes == ("a", "b", "Hu\u0308te")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take both for one folder")
def test_two_spellings_of_one_class_are_refused(tmp_path):
    fill(tmp_path, "H\u00fcte/1.jpg", "Hu\u0308te/1.jpg")
    message = refusal(tmp_path)
    assert f"'{tmp_path}' holds two class folders 'H\u00fcte', which differ only in" in message
    assert "move the photos of one into the other" in message


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    fill(tmp_path / "set", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    fill(tmp_path / "elsewhere", "4.jpg")
    (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere")
    reference = ImageFolder(str(tmp_path / "set"))
    index = open_source(str(tmp_path / "set"))
    assert names(index) == [path for path, _ in reference.samples]

    (tmp_path / "set/a/deep/up").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/a/all").symlink_to(tmp_path / "set")
    (tmp_path / "set/a/self").symlink_to("self")
    (tmp_path / "set/d").symlink_to(tmp_path / "set/d")
    assert names(open_source(str(tmp_path / "set"))) == names(index)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names outside UTF-8")
def test_names_outside_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    fill(folder, os.fsdecode(b"\xff.jpg"), "\N{SNOWMAN}.jpg")
    index = open_source(str(tmp_path))
    assert index.classes == ("caf\\xe9",)
    # Names can be printed anywhere, and the photos are found all the same.
    assert index.name(1) == f"{tmp_path}/caf\\xe9/\\xff.jpg"
    assert [index.read(i) for i in range(2)] == ["\N{SNOWMAN}.jpg".encode(), b"\xff.jpg"]
    assert names(index) == [printable(path) for path, _ in ImageFolder(str(tmp_path)).samples]


def test_fingerprint_moves_with_the_folder_and_changes_with_the_names(tmp_path):
    first = open_source(str(fill(tmp_path / "here", "a/1.jpg", "b/2.jpg"))).fingerprint()
    assert first == open_source(str(fill(tmp_path / "there", "a/1.jpg", "b/2.jpg"))).fingerprint()
    assert len(first) == 64
    others = [["a/1.jpg", "b/3.jpg"], ["a/1.jpg", "c/2.jpg"], ["a/1.jpg", "a/3.jpg", "b/2.jpg"]]
    prints = {
        open_source(str(fill(tmp_path / str(n), *other))).fingerprint()
        for n, other in enumerate(others)
    }
    assert len(prints | {first}) == 4


def test_a_file_that_vanished_is_named(tmp_path):
    index = open_source(str(fill(tmp_path, "a/1.jpg", "a/2.jpg")))
    (tmp_path / "a/2.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read '.*2\.jpg': No such file") as caught:
        index.read(1)
    assert caught.value.exit_code == ExitCode.DATA


def test_missing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "data/train/a/1.jpg")
    assert refusal("data/trian") == "no folder 'data/trian'; did you mean 'data/train'?"
    assert refusal("far/away").startswith("no folder 'far/away'; paths start from the current fol")
    assert refusal("").startswith("no data source")


def test_wrong_kinds_of_source(tmp_path):
    fill(tmp_path, "photos.zip", "flat/1.jpg", "empty/README.md")
    assert "is neither a folder of class folders nor a .tar shard" in refusal(
        tmp_path / "photos.zip"
    )
    assert "holds photos but no class folders; expected" in refusal(tmp_path / "flat")
    assert f"{tmp_path}/flat/<class>/<photo>.jpg" in refusal(tmp_path / "flat")
    assert "holds no photos; expected" in refusal(tmp_path / "empty")
    assert "there are shipped:clothing/train, shipped:clothing/val" in refusal("shipped:shoes")


def test_empty_class_folders_are_named(tmp_path):
    fill(tmp_path, "a/1.jpg", "b/notes.txt")
    assert refusal(tmp_path).startswith(f"class folder 'b' in '{tmp_path}' without a photo; ")
    for name in "cdef":
        (tmp_path / name).mkdir()
    assert refusal(tmp_path).startswith("class folders 'b', 'c', 'd' and 2 more in ")


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    fill(tmp_path / "set", "train/a/1.jpg", "val/a/1.jpg")
    assert refusal(tmp_path / "set") == (
        f"'{tmp_path}/set' holds train/ and val/, which are no classes; "
        f"did you mean '{tmp_path}/set/train', with data.val='{tmp_path}/set/val'?"
    )
    fill(tmp_path / "other", "Training/a/1.jpg", "TEST/a/1.jpg")
    assert refusal(tmp_path / "other") == (
        f"'{tmp_path}/other' holds TEST/ and Training/, which are no classes; "
        f"did you mean '{tmp_path}/other/Training'?"
    )
    assert "holds Train/ and Validation/, which" in refusal(
        fill(tmp_path / "third", "Train/a/1.jpg", "Validation/a/1.jpg")
    )
    # Photos of trains and of tests are classes like any other.
    assert open_source(str(fill(tmp_path / "own", "train/1.jpg", "test/2.jpg"))).classes == (
        "test",
        "train",
    )


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def locked(path):  # chmod would not stop root, who runs many a container
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert refusal(tmp_path) == f"cannot read '{tmp_path}/b': Permission denied"


def test_validation_takes_the_labels_of_training(tmp_path):
    train = open_source(str(fill(tmp_path / "t", "coat/1.jpg", "hat/2.jpg", "shoe/3.jpg")))
    val = open_source(str(fill(tmp_path / "v", "coat/1.jpg", "shoe/3.jpg", "shoe/4.jpg")))
    moved = check_same_classes(train, val)
    assert moved.classes == train.classes
    assert moved.labels.tolist() == [0, 2, 2]
    assert moved.counts().tolist() == [1, 0, 2]
    assert names(moved) == names(val)
    assert with_classes(val, ["shoe", "coat"]).labels.tolist() == [1, 0, 0]


def test_validation_with_an_unknown_class_is_refused(tmp_path):
    train = open_source(str(fill(tmp_path / "t", "coat/1.jpg", "hat/2.jpg")))
    val = open_source(str(fill(tmp_path / "v", "coats/1.jpg", "hat/2.jpg")))
    with pytest.raises(UserError) as caught:
        check_same_classes(train, val)
    assert str(caught.value) == (
        "class 'coats' is not among the 2 training classes; did you mean 'coat'?"
    )
    assert caught.value.exit_code == ExitCode.DATA

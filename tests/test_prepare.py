"""Small archives in ImageNet's official layout become folders of classes, whole or not at all."""

import hashlib
import importlib.util
import io
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from scipy import io as sio
from torchvision.datasets import imagenet

from googlenet_train.data.index import open_source
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs import data as data_cli

TRAIN, VAL, DEVKIT = (imagenet.ARCHIVE_META[part][0] for part in ("train", "val", "devkit"))
WNIDS = {1: "n02119789", 2: "n01440764", 3: "n02100735"}  # by ILSVRC2012_ID
TRUTH = [2, 2, 1, 3, 1]  # of the validation images, in the order of their names


def tar_of(members: dict[str, bytes], compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def devkit() -> bytes:
    """The devkit's two files that count: a struct array per synset, and the labels of val."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    rows = [
        *((i, wnid, f"fish {i}, name {i}", "a fish", 0) for i, wnid in WNIDS.items()),
        (1001, "n00001740", "entity", "all of them", 3),  # no leaf: no class
    ]
    synsets = np.array(rows, dtype=[(field, object) for field in fields]).reshape(-1, 1)
    meta = io.BytesIO()
    sio.savemat(meta, {"synsets": synsets})
    root = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{i}\n" for i in TRUTH).encode()
    return tar_of(
        {
            f"{root}/meta.mat": meta.getvalue(),
            f"{root}/ILSVRC2012_validation_ground_truth.txt": truth,
        },
        "gz",
    )


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """The three archives, with the MD5 sums that torchvision is told to expect."""
    folder = tmp_path / "ILSVRC2012 archives"
    folder.mkdir()
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{n}.JPEG": f"{wnid} {n}".encode() for n in range(2)})
        for wnid in WNIDS.values()
    }
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": f"val {n}".encode() for n in range(1, 6)}
    for part, name, data in [
        ("train", TRAIN, tar_of(inner)),
        ("val", VAL, tar_of(val)),
        ("devkit", DEVKIT, devkit()),
    ]:
        (folder / name).write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, md5))
    return folder


def prepare(*words: object) -> int:
    return data_cli.main(["prepare", *map(str, words)])


def refusal(*words: object, code: ExitCode = ExitCode.DATA) -> str:
    with pytest.raises(UserError) as caught:
        prepare(*words)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(index) -> dict[str, list[bytes]]:
    return {
        name: [index.read(i) for i in range(len(index)) if index.labels[i] == label]
        for label, name in enumerate(index.classes)
    }


def test_imagenet(tmp_path, archives, capsys):
    before = {path.name for path in archives.iterdir()}
    out = tmp_path / "imagenet"
    assert prepare("imagenet", "--archives", archives, "--out", out) == ExitCode.DONE
    assert contents(open_source(str(out / "train"))) == {
        wnid: [f"{wnid} {n}".encode() for n in range(2)] for wnid in sorted(WNIDS.values())
    }
    assert contents(open_source(str(out / "val"))) == {
        "n01440764": [b"val 1", b"val 2"],
        "n02100735": [b"val 4"],
        "n02119789": [b"val 3", b"val 5"],
    }
    assert {path.name for path in out.iterdir()} == {"train", "val"}
    assert {path.name for path in archives.iterdir()} == before
    printed = capsys.readouterr()
    assert printed.out == f"use      data.train={out / 'train'} data.val={out / 'val'}\n"
    # and again: nothing to do
    assert prepare("imagenet", "--archives", archives, "--out", out) == ExitCode.DONE
    assert capsys.readouterr().err.count("is there already") == 2


def test_a_call_that_was_stopped_is_done_again(tmp_path, archives, monkeypatch):
    extract, calls = imagenet.extract_archive, []

    def stop(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 4:  # devkit, val, train, and then the first class
            raise KeyboardInterrupt
        return extract(*arguments, **more)

    out = tmp_path / "imagenet"
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "extract_archive", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("imagenet", "--archives", archives, "--out", out)
    assert not (out / "train").exists()
    assert prepare("imagenet", "--archives", archives, "--out", out) == ExitCode.DONE
    assert {path.name for path in out.iterdir()} == {"train", "val"}
    assert len(open_source(str(out / "train"))) == 6


def test_missing_archives_are_named(tmp_path, archives):
    (archives / DEVKIT).unlink()
    words = ("imagenet", "--archives", archives, "--out", tmp_path / "out")
    assert f"'{archives}' lacks {DEVKIT}; download from https://image-net.org" in refusal(*words)
    (archives / TRAIN).unlink()
    assert f"lacks {TRAIN}, {DEVKIT};" in refusal(*words)
    assert f"lacks {TRAIN}, {VAL}, {DEVKIT};" in refusal(
        "imagenet", "--archives", tmp_path / "nowhere", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_a_damaged_archive_is_named(tmp_path, archives, name):
    (archives / name).write_bytes((archives / name).read_bytes()[:-600])
    message = refusal("imagenet", "--archives", archives, "--out", tmp_path / "out")
    assert message == f"'{archives / name}' is damaged or not the official file; download it again"
    assert not (tmp_path / "out/train").exists()


def test_without_scipy(tmp_path, archives, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name)
    )
    message = refusal("imagenet", "--archives", archives, "--out", tmp_path / "out")
    assert message.endswith("which needs SciPy: pip install scipy")


def test_a_disk_that_is_too_small(tmp_path, archives, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    message = refusal(
        "imagenet", "--archives", archives, "--out", tmp_path / "out", code=ExitCode.STORAGE
    )
    assert "GB free, but val needs" in message


# --- Imagenette: its download is replaced, for tests have no network ------------------------------


@pytest.fixture
def imagenette(monkeypatch) -> list[Path]:
    """In place of torchvision's downloader one that unpacks the same layout."""
    calls: list[Path] = []

    def download(root: Path, split: str, size: str, download: bool) -> None:
        assert (split, size, download) == ("train", "full", True)
        calls.append(root)
        for name in ("train/n01440764/1.JPEG", "val/n01440764/2.JPEG"):
            path = root / "imagenette2" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"photo")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", download)
    return calls


def test_imagenette(tmp_path, imagenette, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert prepare("imagenette", "--out", out) == ExitCode.DONE
    assert len(imagenette) == 1
    assert {path.name for path in out.iterdir()} == {"train", "val"}
    assert open_source(str(out / "val")).name(0).endswith("n01440764/2.JPEG")
    assert "imagenette is there already" in capsys.readouterr().err


def test_imagenette_that_was_stopped(tmp_path, imagenette):
    half = tmp_path / "out/.imagenette.partial/imagenette2/train/n01440764"
    half.mkdir(parents=True)
    (tmp_path / "out/val").mkdir()
    assert prepare("imagenette", "--out", tmp_path / "out") == ExitCode.DONE
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "val"}
    assert len(open_source(str(tmp_path / "out/train"))) == 1


def test_imagenette_without_a_network(tmp_path, monkeypatch):
    def unreachable(*arguments: object, **more: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", unreachable)
    message = refusal("imagenette", "--out", tmp_path / "out")
    assert message.startswith("cannot download Imagenette: <urlopen error")


@pytest.mark.parametrize("words", [[], ["imagenet"], ["cifar"], ["imagenette"]])
def test_usage(words, tmp_path):
    refusal(*words, code=ExitCode.USAGE)

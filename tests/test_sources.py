"""From settings to what is trained and evaluated on: splits, tables of labels, exclusions."""

import csv
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from googlenet_train.config.images import Data
from googlenet_train.data.index import Index, open_source
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run.sources import Sources, open_sources, split_text


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder `photos` with forty files in each of two classes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "a dog, big"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            (tmp_path / "photos" / name / f"{i}.jpg").write_text(f"{name}{i}")
    return tmp_path / "photos"


def opened(**settings: object) -> Sources:
    return open_sources(Data.model_validate({"train": "photos", **settings}))


def names(index: Index | None) -> list[str]:
    assert index is not None
    return [index.files.names[i] for i in range(len(index))]


def refused(**settings: object) -> str:
    with pytest.raises(UserError) as caught:
        opened(**settings)
    assert caught.value.exit_code == ExitCode.DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_part_is_held_out_unless_told_otherwise(photos):
    train, val, split = opened()[:3]
    assert val is not None
    assert split
    assert sorted(names(train) + names(val)) == sorted(names(open_source("photos")))
    assert 8 < len(val) < 26
    assert (val.counts() > 0).all()
    assert val.read(0) == (photos / names(val)[0]).read_bytes()
    assert [val.classes[label] for label in val.labels] == [n.split("/")[0] for n in names(val)]

    train, val, split = opened(val_fraction=0)[:3]
    assert (len(train), val, split) == (80, None, False)
    train, val, split = opened(val="photos")[:3]
    assert (len(train), len(val or ()), split) == (80, 80, False)


def test_names_do_not_matter_and_added_photos_move_none(photos):
    def contents(index: Index | None) -> set[bytes]:
        assert index is not None
        return {bytes(index.read(i)) for i in range(len(index))}

    before = [contents(side) for side in opened()[:2]]
    for i, path in enumerate(sorted(photos.rglob("*.jpg"))):
        path.rename(path.with_name(f"renamed-{i:02}.jpg"))
    for i in range(20):
        (photos / "cat" / f"new{i}.jpg").write_text(f"new{i}")
    after = [contents(side) for side in opened()[:2]]
    assert before[0] <= after[0]
    assert before[1] <= after[1]
    assert sum(map(len, after)) == 100


def test_a_fingerprint_for_each_side(photos):
    first = opened()
    assert first.train.fingerprint() == opened().train.fingerprint()
    assert first.train.fingerprint() != opened(val_fraction=0.3).train.fingerprint()
    changed = next(i for i in range(len(first.train)) if first.train.labels[i] == 0)
    (photos / names(first.train)[changed]).rename(photos / "cat/new.jpg")
    assert opened().train.fingerprint() != first.train.fingerprint()


def test_shards_are_split_by_the_same_contents(photos):
    with tarfile.open("packed.tar", "w") as tar:
        for path in sorted(photos.rglob("*.jpg")):
            tar.add(path, path.relative_to(photos))
    folder, shards = opened(), opened(train="packed.tar")
    assert names(shards.val) == names(folder.val)
    assert shards.val is not None
    assert shards.val.read(0) == (photos / names(folder.val)[0]).read_bytes()
    assert (
        shards.val.fingerprint() != opened(train="packed.tar", val_fraction=0.3).train.fingerprint()
    )


def test_copies_are_told(photos):
    (photos / "cat/copy.jpg").write_text("cat7")
    (photos / "a dog, big/copy.jpg").write_text("cat9")
    note, warning = opened().notes
    assert note.startswith("note     2 photos are copies of another")
    assert "photos/a dog, big/copy.jpg and photos/cat/9.jpg" in warning


def test_the_split_as_a_table_of_labels(photos):
    whole = opened()
    Path("split.csv").write_bytes(split_text(whole))
    with Path("split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    assert [row["path"] for row in rows if row["split"] == "val"] == sorted(names(whole.val))
    again = opened(labels="split.csv")
    assert sorted(names(again.val)) == sorted(names(whole.val))
    assert again.train.classes == whole.train.classes


def table(name: str, *lines: str) -> str:
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def test_labels_replace_the_folders(photos):
    root = photos.resolve()
    lines = [
        "\ufeffnote,label,path",
        "x,white,cat/1.jpg",
        'x,"red, blue",./cat/2.jpg',
        "",
        f"x,white,{root}/cat/3.jpg",
        'x,"red, blue","photos/a dog, big/4.jpg"',
    ]
    train = opened(labels=table("labels.csv", *lines), val_fraction=0).train
    assert train.classes == ("red, blue", "white")
    assert names(train) == ["a dog, big/4.jpg", "cat/2.jpg", "cat/1.jpg", "cat/3.jpg"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.read(0) == b"a dog, big4"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat/1.jpg,white"], "labels.csv:1: the first line must name the columns, path,label"),
        (["path;label"], "labels.csv:1: the columns are separated by ';', and have to be by ','"),
        (['"Label";"Path";"x"'], "labels.csv:1: the columns are separated by ';', and"),
        (
            ["label\tpath"],
            "labels.csv:1: the columns are separated by a tab, and have to be by ','",
        ),
        (["sep=;", "path;label"], "labels.csv:1: 'sep=;' is a line for Excel alone; delete it"),
        (["sep=,", "path,label"], "labels.csv:1: 'sep=,' is a line for Excel alone; delete it"),
        (["path,label,label"], "labels.csv:1: the first line names the column label twice"),
        (["Path,path,PATH,x"], "labels.csv:1: the first line must name the columns, path,label"),
        (["Path,PATH,label"], "labels.csv:1: the first line names the column path twice"),
        ([], "labels.csv:1: the first line must name the columns"),
        (["path,label"], "labels.csv:1: no photos below"),
        (["path,label", "cat/1.jpg,a", "cat/2.jpg"], "labels.csv:3: 1 columns, but the first"),
        (["path,label", "cat/1.jpg,a,b"], "labels.csv:2: 3 columns, but the first line names 2"),
        (["path,label", "cat/1.jpg, "], "labels.csv:2: the column label is empty"),
        (["path,label", ",a"], "labels.csv:2: the column path is empty"),
        (["path,label", '"cat/1.jpg"x,a'], "labels.csv:2: is no CSV"),
        (
            ["path,label", "cat/1.jpg,a", "", "cat/1.jpg,b"],
            ":4: 'cat/1.jpg' stands twice, first in",
        ),
        (["path,label", "cat/100.jpg,a"], "labels.csv:2: no file 'photos/cat/100.jpg'"),
        (["path,label", "../cat/1.jpg,a"], "labels.csv:2: '../cat/1.jpg' does not lie in 'photos'"),
        (["path,label", "/etc/hosts,a"], "labels.csv:2: '/etc/hosts' does not lie in 'photos'"),
    ],
)
def test_labels_that_are_refused(photos, lines, message):
    assert message in refused(labels=table("labels.csv", *lines))


def test_column_names_in_capitals(photos):
    lines = ["PATH,Label,LABEL ID", "cat/1.jpg,a,7", "cat/2.jpg,b,8"]
    train = opened(labels=table("labels.csv", *lines), val_fraction=0).train
    assert train.classes == ("a", "b")
    lines = ["path,Path,label,LABEL", "cat/1.jpg,x,a,7", "cat/2.jpg,x,b,8"]
    assert opened(labels=table("labels.csv", *lines), val_fraction=0).train.classes == ("a", "b")


def test_labels_are_composed_whatever_wrote_them(photos):
    lines = ["path,label", "cat/1.jpg,Hu\u0308te", "cat/2.jpg,H\u00fcte", "cat/3.jpg,Z"]
    train = opened(labels=table("labels.csv", *lines), val_fraction=0).train
    assert train.classes == ("H\u00fcte", "Z")
    assert train.labels.tolist() == [0, 0, 1]


def test_tables_that_are_not_utf8_are_refused(photos):
    (photos / "M\u00fcll").mkdir()
    (photos / "M\u00fcll/1.jpg").write_text("x")
    Path("labels.csv").write_bytes("path,label\ncat/1.jpg,a\ncat/2.jpg,M\u00fcll".encode("cp1252"))
    assert refused(labels="labels.csv") == (
        "labels.csv:3: 'M\\xfcll' is not UTF-8. Save the table as UTF-8 (in Excel: as 'CSV UTF-8')"
    )
    Path("paths.csv").write_bytes("path,label\nM\u00fcll/1.jpg,a\n".encode("cp1252"))
    assert "paths.csv:2: 'M\\xfcll/1.jpg' is not UTF-8. Save" in refused(labels="paths.csv")
    assert "paths.csv:2: 'M\\xfcll/1.jpg' is not UTF-8. Save" in refused(exclude="paths.csv")


def test_tables_that_are_no_files(photos):
    assert refused(labels="none.csv") == "none.csv: cannot be read: No such file or directory"
    assert refused(exclude="photos") == "photos: cannot be read: Is a directory"
    labels = table("labels.csv", "path,label", "cat/1.jpg,a")
    assert "no folder 'phots'" in refused(train="phots", labels=labels)


def test_photos_to_leave_out(photos):
    lines = ["set,path,reason", "data.train,photos/cat/3.jpg,x", "data.train,cat/5.jpg,x", ",z,x"]
    exclude = table("quarantine.csv", *lines)
    whole, less = opened(), opened(exclude=exclude)
    gone = {"cat/3.jpg", "cat/5.jpg"}
    assert set(names(less.train)) == set(names(whole.train)) - gone
    assert set(names(less.val)) == set(names(whole.val)) - gone
    assert "1 of its 3 paths are not in data.train, first 'z' in line 4" in less.notes[0]

    everything = ["path", *(f"cat/{i}.jpg" for i in range(40))]
    message = refused(exclude=table("all.csv", *everything))
    assert message == "all.csv: leaves out every photo of class 'cat'"
    assert "all.csv:1: the first line must name" in refused(exclude=table("all.csv", "photo", "x"))
    assert "all.csv:3: the column path is" in refused(exclude=table("all.csv", "path", "x", '""'))


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text(photos):
    odd = os.fsencode(photos / "cat") + b"/\xff.jpg"
    os.close(os.open(odd, os.O_CREAT))
    whole = opened()
    Path("split.csv").write_bytes(split_text(whole))
    assert b"cat/\xff.jpg,cat," in Path("split.csv").read_bytes()
    assert os.fsdecode(b"cat/\xff.jpg") in names(opened(labels="split.csv", val_fraction=0).train)
    Path("out.csv").write_bytes(b"path\ncat/\xff.jpg\n")
    assert os.fsdecode(b"cat/\xff.jpg") not in names(
        opened(exclude="out.csv", val_fraction=0).train
    )


def test_hub_rows_can_be_chosen(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    images = [{"bytes": bytes([i]), "path": None} for i in range(6)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set/train.parquet")
    index = open_source(f"hub:{tmp_path}/set").chosen(np.array([1, 4]))
    assert [bytes(index.read(i)) for i in range(2)] == [b"\x01", b"\x04"]
    assert index.labels.tolist() == [1, 0]

"""Held-out photos: chosen by contents, copies together, the same when photos are added."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from googlenet_train.data import digests as module
from googlenet_train.data.digests import SIZE, copies, digests
from googlenet_train.data.index import open_source
from googlenet_train.data.split import held_out
from googlenet_train.errors import ExitCode, UserError


def made(*groups: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Digests, labels and class names of classes given as strings: a letter is a content."""
    contents = [letter for group in groups for letter in group]
    found = [hashlib.blake2b(c.encode(), digest_size=SIZE).digest() for c in contents]
    labels = [number for number, group in enumerate(groups) for _ in group]
    table = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, SIZE)
    return table, np.array(labels, dtype=np.int32), [f"class{i}" for i in range(len(groups))]


def sides(*groups: str, fraction: float = 0.2) -> list[str]:
    """For each class `t` or `v` for each of its photos."""
    found, labels, classes = made(*groups)
    out = held_out(found, labels, classes, fraction)
    return ["".join("v" if o else "t" for o in out[labels == i]) for i in range(len(groups))]


def place(letter: str) -> float:
    digest = hashlib.blake2b(letter.encode(), digest_size=SIZE).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_each_side_is_what_the_hash_says(fraction):
    [one, two] = sides(LETTERS[:3000], LETTERS[3000:], fraction=fraction)
    expected = "".join("v" if place(letter) < fraction else "t" for letter in LETTERS)
    assert one + two == expected
    share = expected.count("v") / len(expected)
    assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / len(expected)) ** 0.5


def test_copies_are_together_in_and_across_classes():
    one, two = LETTERS[:400] + LETTERS[:50], LETTERS[200:700]
    first, second = sides(one, two)
    assert first[:50] == first[400:]
    assert first[200:400] == second[:200]


def test_added_photos_move_none():
    before = sides(LETTERS[:300], LETTERS[1000:1300])
    after = sides(LETTERS[:900], LETTERS[1000:1900])
    assert [a[:300] for a in after] == before


def test_small_classes_have_a_photo_on_each_side():
    for start in range(0, 600, 2):
        pair = LETTERS[start : start + 2]
        [got] = sides(pair)
        assert sorted(got) == ["t", "v"]
        assert got[0] == ("v" if place(pair[0]) < place(pair[1]) else "t")


def test_no_class_is_left_without_training_photos():
    generator = np.random.default_rng(0)
    for _ in range(300):
        groups = []
        for _ in range(6):
            chosen = generator.choice(12, size=generator.integers(2, 5), replace=False)
            groups.append("".join(LETTERS[i] for i in chosen))
        got = sides(*groups, fraction=float(generator.choice([0.1, 0.5, 0.9])))
        sided = [set(zip(g, s, strict=True)) for g, s in zip(groups, got, strict=True)]
        assert all("t" in g for g in got)
        union = set().union(*sided)
        assert len(union) == len({letter for letter, _ in union})  # each content has one side
        for group, side in zip(groups, got, strict=True):
            alone = [c for c in group if sum(c in other for other in groups) == 1]
            if len(alone) > 1:  # nothing stands in the way of a photo to evaluate on
                assert "v" in side


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("ab", "c"), "'class1' (photos: 1)"),
        (("ab", "cc"), "'class1' (copies of one photo)"),
        (tuple("abcdefg"), "'class4' (photos: 1) and 2 more"),
    ],
)
def test_classes_that_cannot_be_split_are_named(groups, message):
    with pytest.raises(UserError) as caught:
        held_out(*made(*groups), 0.2)
    assert caught.value.exit_code == ExitCode.DATA
    assert message in str(caught.value)


# What the bytes are, and how that is kept.


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Six files of two classes, two of them the same; digests of such small ones are kept too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MIN_BYTES", 0)
    for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"same" if name in ("a/2.jpg", "b/3.jpg") else name.encode())
        os.utime(path, ns=(10**18, 10**18))
    return tmp_path / "photos"


def ask(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], list[str]]:
    """The digests, and which files were read for them."""
    index = open_source(str(root))
    seen: list[str] = []
    read = type(index).read

    def watched(self, i):
        seen.append(self.files.names[i])
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(type(index), "read", watched)
        found = digests(index, str(root))
    return [row.tobytes() for row in found], sorted(seen)


def test_digests_are_blake2b_and_find_copies(photos, monkeypatch):
    found, seen = ask(photos, monkeypatch)
    files = sorted(photos.rglob("*.jpg"))
    assert found == [hashlib.blake2b(f.read_bytes(), digest_size=16).digest() for f in files]
    assert len(seen) == 6
    assert copies(digests(open_source(str(photos)), str(photos))) == [[1, 5]]


def test_a_second_time_only_what_changed_is_read(photos, monkeypatch):
    first, _ = ask(photos, monkeypatch)
    assert ask(photos, monkeypatch) == (first, [])
    (photos / "a/1.jpg").write_bytes(b"other")  # another size and time
    os.utime(photos / "a/1.jpg", ns=(10**18, 10**18))
    (photos / "b/2.jpg").write_bytes(b"B/2.jpg")  # another time alone
    (photos / "b/4.jpg").write_bytes(b"new")
    found, seen = ask(photos, monkeypatch)
    assert seen == ["a/1.jpg", "b/2.jpg", "b/4.jpg"]
    files = sorted(photos.rglob("*.jpg"))
    assert found == [hashlib.blake2b(f.read_bytes(), digest_size=16).digest() for f in files]
    # What was written this very moment may change once more without another time.
    assert ask(photos, monkeypatch)[1] == ["b/2.jpg", "b/4.jpg"]


def test_what_is_kept_may_be_damaged_or_absent(photos, monkeypatch, tmp_path):
    first, _ = ask(photos, monkeypatch)
    [kept] = (tmp_path / "cache/googlenet-train").glob("*.digests")
    for content in (b"", b"nonsense", kept.read_bytes()[:-40]):
        kept.write_bytes(content)
        assert ask(photos, monkeypatch) == (first, ALL)
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("a file")
    assert ask(photos, monkeypatch)[0] == first


ALL = ["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"]


def test_little_is_neither_kept_nor_told(photos, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "MIN_BYTES", 1000)
    assert ask(photos, monkeypatch)[1] == ALL
    assert ask(photos, monkeypatch)[1] == ALL
    assert not (tmp_path / "cache").exists()
    assert capsys.readouterr().err == ""


def test_a_photo_that_cannot_be_read_is_named(photos, monkeypatch):
    index = open_source(str(photos))
    (photos / "b/1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*b/1\.jpg"):
        digests(index, str(photos))

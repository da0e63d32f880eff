"""What people call the classes: classes.txt, ImageNet's names, the folders'."""

from pathlib import Path

import pytest
from torchvision.models._meta import _IMAGENET_CATEGORIES

from googlenet_train.data.class_names import _IMAGENET, class_names
from googlenet_train.errors import ExitCode, UserError

CLASSES = ("a b", "cat", "dog")


def named(folder: Path, *lines: str, classes: tuple[str, ...] = CLASSES) -> tuple[str, ...]:
    (folder / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return class_names(classes, folder)


def test_without_a_list_the_folders(tmp_path):
    assert class_names(CLASSES, tmp_path) == CLASSES
    assert class_names(CLASSES, None) == CLASSES


@pytest.mark.parametrize(
    "lines",
    [
        ["Alpha Beta", "the cat", "dogs"],
        ["\ufeffAlpha Beta", "", "  the cat  ", "dogs", ""],
        ["dog dogs", "a b\tAlpha Beta", "cat  the cat"],
        ["dog\tdogs", "n01440764 tench", "a b\tAlpha Beta", "cat the cat"],
    ],
)
def test_forms_of_the_list(tmp_path, lines):
    assert named(tmp_path, *lines) == ("Alpha Beta", "the cat", "dogs")


def test_folders_in_another_order_are_not_taken_for_names(tmp_path):
    assert named(tmp_path, "dog", "cat", "a b") == CLASSES


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x", "y"], "no line for class 'a b'. Its 2 lines are"),
        (["a b", "cat", "dgo"], "no line for class 'dog'; did 'dgo' mean it? Its 3 lines"),
        (["cat x", "dog x", "a b y"], "classes.txt:2: 'x' is the name of two classes, first in li"),
        (["one", "two", "one"], "classes.txt:3: 'one' is the name of two classes, first in line 1"),
    ],
)
def test_lists_that_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError) as caught:
        named(tmp_path, *lines)
    assert message in str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize("text", ["a b x\ncat\ndog M\u00fcll", "K\u00fche\nb\nc"])
def test_a_list_that_is_not_utf8_is_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_bytes(text.encode("cp1252"))
    line = 1 + text[: text.index("\u00fc")].count("\n")
    with pytest.raises(
        UserError, match=rf"classes\.txt:{line}: is not UTF-8\. Save the file"
    ) as caught:
        class_names(CLASSES, tmp_path)
    assert caught.value.exit_code == ExitCode.DATA


def test_accents_are_composed_whatever_wrote_them(tmp_path):
    composed, apart = "H\u00fcte", "Hu\u0308te"
    assert named(tmp_path, f"{apart} Kopf{apart}", "b", classes=(composed, "b")) == (
        f"Kopf{composed}",
        "b",
    )
    assert named(tmp_path, f"{composed} x", "b", classes=(apart, "b")) == ("x", "b")


def test_wordnet_ids_have_the_names_of_torchvision():
    ids = [line.split("\t")[0] for line in _IMAGENET.read_text().splitlines()]
    assert ids == sorted(set(ids))  # torchvision numbers the classes in the order of the ids
    assert class_names(ids, None) == tuple(_IMAGENET_CATEGORIES)
    some = ("n01440764", "n02979186", "n99999999")
    assert class_names(some, None) == ("tench", "cassette player", "n99999999")
    assert class_names((*some, "cat"), None) == (*some, "cat")

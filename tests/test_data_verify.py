"""The verb `data verify`: every bad file with its reason, copies found, nothing else said."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs import data_verify


def photo(seed: int, format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for n in range(6):
        folder = tmp_path / "set" / ("cat" if n % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.jpg").write_bytes(photo(n))
    (tmp_path / "set/cat/9.png").write_bytes(photo(9, "PNG"))
    return tmp_path / "set"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Verify = Callable[..., Answer]


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Iterator[Verify]:
    """`verify(source, *flags)`; what libraries write past Python is in `err` too."""
    threads = torch.get_num_threads()

    def run(source: Path | str, *flags: str) -> Answer:
        capfd.readouterr()
        return Answer(data_verify.main([str(source), *flags]), *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)


def spoil(source: Path) -> dict[str, str]:
    """Bad files, and what each should be called."""
    whole = photo(100)
    (source / "cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "cat/cut.png").write_bytes(photo(101, "PNG")[:2000])
    (source / "dog/empty.jpg").touch()
    (source / "dog/text.jpg").write_text("<html>404</html>")
    (source / "dog/tab\there.jpg").touch()
    (source / "dog/gone.jpg").symlink_to("nowhere.jpg")
    return {
        "cat/cut.jpg": "truncated JPEG",
        "cat/cut.png": "truncated PNG",
        "dog/empty.jpg": "empty file",
        "dog/gone.jpg": "cannot read",
        "dog/tab\\there.jpg": "empty file",
        "dog/text.jpg": "not an image",
    }


def test_all_good(source, verify):
    done = verify(source, "--workers", "2")
    assert done.code == ExitCode.DONE
    assert done.out.startswith("7 photos, bad: 0, duplicates: 0 (of 0; across classes: 0), ")
    assert done.out.count("\n") == 1
    assert "verify: 100%" in done.err


@pytest.mark.parametrize("workers", ["1", "3"])
def test_every_bad_file_is_listed_with_its_reason(source, workers, verify):
    reasons = spoil(source)
    done = verify(source, "--workers", workers)
    assert done.code == ExitCode.DATA
    *lines, summary = done.out.splitlines()
    listed = dict(line.split("\t") for line in lines)
    assert list(listed) == [f"{source}/{name}" for name in reasons]
    for name, reason in reasons.items():
        assert reason in listed[f"{source}/{name}"]
    # Two of them are the same: both empty.
    assert summary.startswith("13 photos, bad: 6, duplicates: 1 (of 1; across classes: 0)")


def test_duplicates_within_and_across_classes(source, verify):
    shutil.copy(source / "cat/1.jpg", source / "cat/copy.jpg")
    shutil.copy(source / "cat/3.jpg", source / "dog/copy.jpg")
    shutil.copy(source / "cat/3.jpg", source / "dog/again.jpg")
    done = verify(source, "--duplicates")
    assert done.code == ExitCode.DONE
    first, second, summary = done.out.splitlines()
    assert first.split("\t") == ["same bytes", *(f"{source}/cat/{n}.jpg" for n in ("1", "copy"))]
    assert second.split("\t") == [
        "same bytes",
        *(f"{source}/{name}.jpg" for name in ("cat/3", "dog/again", "dog/copy")),
    ]
    assert summary.startswith("10 photos, bad: 0, duplicates: 3 (of 2; across classes: 1)")
    assert "same bytes" not in verify(source).out


def test_json_is_alone_on_stdout(source, verify):
    spoil(source)
    done = verify(source, "--json", "--duplicates")
    assert done.code == ExitCode.DATA
    answer = json.loads(done.out)
    assert (answer["photos"], answer["duplicates"], answer["groups_across_classes"]) == (13, 1, 0)
    assert answer["bad"][0] == {"path": f"{source}/cat/cut.jpg", "reason": "truncated JPEG"}
    assert answer["copies"] == [[f"{source}/dog/empty.jpg", f"{source}/dog/tab\there.jpg"]]


def test_lines_of_libjpeg_are_not_shown(source, verify):
    # Bytes of the picture's middle overwritten: libjpeg has something to say, and decodes.
    data = bytearray((source / "cat/1.jpg").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd3" * 20
    (source / "cat/1.jpg").write_bytes(data)
    done = verify(source)
    assert done.code == ExitCode.DONE
    assert "orrupt" not in done.err
    assert "verify: 100%" in done.err


def test_shards_are_verified_too(verify):
    done = verify("shipped:clothing/val", "--json")
    assert done.code == ExitCode.DONE
    answer = json.loads(done.out)
    assert (answer["photos"], answer["bad"]) == (341, [])


def test_wrong_words():
    with pytest.raises(UserError, match=r"'none' is no whole number from 1 on") as caught:
        data_verify.main(["set", "--workers", "none"])
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_source_that_is_not_there_needs_no_torch(tmp_path):
    script = (
        "import sys\nsys.modules['torch'] = None\n"
        "from googlenet_train.verbs.data_verify import main\nfrom googlenet_train.errors import *\n"
        "try:\n    main(['missing'])\nexcept UserError as error:\n    sys.exit(error.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60)
    assert done.returncode == ExitCode.DATA

"""Files that are no photos, odd ones and damaged ones, on their way into a run."""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.conftest import Start, newest, posix

Record = Callable[[str, object], None]
pytestmark = posix


def fuzz(start: Start, files: int, before: str = "") -> dict:
    """What the fuzzer found in so many files, after the statements `before`."""
    call = f'fuzz_decoder.main(["--files", "{files}", "--seed", "1", "--json"])'
    child = start(None, before=f"import fuzz_decoder, os, time\n{before}\n{call}")
    assert child.wait() == 0
    answer: dict = json.loads(child.stderr.splitlines()[-1])
    return answer


def test_a_sample_of_damaged_files(start: Start, record_property: Record) -> None:
    result = fuzz(start, 500)
    assert result["wrong"] == []
    assert result["decoded"] + result["reported"] == 500
    assert min(result["decoded"], result["reported"]) > 50
    record_property("files", 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "sign"),
    [
        ("os.abort()", "ended the process with -6"),
        ("time.sleep(60)", "hung"),
        ("raise KeyError('x')", "wrong: KeyError"),
    ],
)
def test_the_fuzzer_notices(start: Start, fault: str, sign: str) -> None:
    before = f"""
fuzz_decoder.SECONDS_A_FILE = 1
look = fuzz_decoder.look
def bad(index, i, seed):
    if i == 3:
        {fault}
    return look(index, i, seed)
fuzz_decoder.look = bad
"""
    (wrong,) = fuzz(start, 20, before)["wrong"]
    assert "000003." in wrong
    assert sign in wrong


def odd_files(folder: Path) -> None:
    """Whatever a folder of photos from the web holds; all can be decoded."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = image.quantize(32)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "named.jpg", "PNG")
    image.save(folder / "named.png", "JPEG")
    palette.save(folder / "palette.png", transparency=bytes(range(32)))
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "rotated.jpg", exif=exif)
    palette.save(folder / "animated.png", "GIF", save_all=True, append_images=[palette.rotate(90)])
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(folder / "16 bit.png")
    image.convert("1").save(folder / "1 bit.png")
    image.save(folder / "progressive.jpeg", progressive=True)
    image.save(folder / "Überraschung – 靴.jpg")
    image.save(folder / os.fsdecode(b"latin1-\xe9.jpg"))
    (folder / "link.jpg").symlink_to(folder / "cmyk.jpg")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names outside UTF-8")
def test_a_run_on_odd_files(start: Start, tiny_folder: Path) -> None:
    """All are trained on and evaluated, whatever their mode, name or place."""
    for split in ("train", "val"):
        (tiny_folder / f"odd/{split}/thing").mkdir(parents=True)
        odd_files(tiny_folder / f"odd/{split}/thing")
        (tiny_folder / f"odd/{split}/thing/loop").symlink_to(tiny_folder / f"odd/{split}")
        (tiny_folder / f"odd/{split}/plain").mkdir()
        shutil.copy(tiny_folder / "photos/train/cat/0.jpg", tiny_folder / f"odd/{split}/plain")
    child = start("run", "data.train=odd/train", "data.val=odd/val", "optimizer.batch_size=14")
    assert child.wait() == 0, child.stderr
    assert "train    14 photos" in child.stderr
    assert "unreadable" not in child.stderr
    assert newest(tiny_folder / "run") == (2, [])


def bad_files(folder: Path, good: bytes) -> dict[str, bytes | None]:
    """Files that cannot be decoded; None for a link to nothing."""
    files = {
        "empty.jpg": b"",
        "cut.jpg": good[: len(good) // 2],
        "prose.jpg": b"404 Not Found\n" * 50,
        "bomb.png": bomb(),
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "link.jpg": None,
    }
    for name, content in files.items():
        if content is None:
            (folder / name).symlink_to("nowhere.jpg")
        else:
            (folder / name).write_bytes(content)
    return files


def bomb(side: int = 30_000) -> bytes:
    """A whole PNG of 30,000 x 30,000 one-bit pixels, 110 KB: 2.7 GB as RGB."""
    import struct

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    packed = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_bad_files_stop_a_run_with_their_path_or_are_left_out(
    start: Start, tiny_folder: Path
) -> None:
    folder = tiny_folder / "photos/train/dog"
    bad = bad_files(folder, (folder / "0.jpg").read_bytes())
    words = ("optimizer.batch_size=36", "schedule.epochs=1")
    child = start("stopped", *words)
    assert child.wait() == 3
    error = child.stderr.split("error    ")[1]
    assert any(f"photos/train/dog/{name}" in error for name in bad)

    child = start("left", *words, "data.on_error=quarantine", "data.quarantine_limit=0.2")
    assert child.wait() == 0
    listed = (tiny_folder / "left/quarantine.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[1] for line in listed) == sorted(
        f"photos/train/dog/{name}" for name in bad
    )


def test_a_bomb_takes_no_memory(start: Start, tiny_folder: Path) -> None:
    (tiny_folder / "bomb.png").write_bytes(bomb())
    before = """
import resource
from pathlib import Path
from googlenet_train.data.decode import UndecodableImage, decode, image_size
data = Path("bomb.png").read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read in (image_size, decode):
    try:
        read(data)
    except UndecodableImage as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    child = start(None, before=before)
    assert child.wait() == 0
    *errors, grown = child.stderr.splitlines()
    assert len(errors) == 2
    assert all("limit of" in error for error in errors)
    assert int(grown) < 20_000  # KiB; the pixels would take 110 MB packed, 2.7 GB as RGB

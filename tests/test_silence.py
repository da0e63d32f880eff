"""libjpeg's own lines never reach the person; everybody else's do."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from googlenet_train.data import decode as decoding
from googlenet_train.data.crops import Box
from googlenet_train.data.silence import codecs_silent

data = Path(sys.argv[1]).read_bytes()
boxes = [None, Box(0, 0, 300, 300), Box(10, 10, 280, 60), Box(200, 100, 64, 64)]
libc = ctypes.CDLL(None)

def say(words):
    libc.fputs(words, ctypes.c_void_p.in_dll(libc, "stderr"))

if sys.argv[2] == "aloud":
    torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3, False)
else:
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda n: decoding.decode(data, boxes[n % 4]), range(80)):
            print("working", file=sys.stderr)
    say(b"C speaks\\n")
    with codecs_silent, codecs_silent:
        say(b"C whispers\\n")
    say(b"C again\\n")
"""


def damaged(kind: str) -> bytes:
    """A JPEG of noise, 300 x 300, that libjpeg decodes and complains about."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = bytearray(file.getvalue())
    if kind == "bytes before the end":
        return bytes(data[:-2]) + bytes(37) + bytes(data[-2:])
    if kind == "an early end":
        return bytes(data[: len(data) // 2]) + b"\xff\xd9"
    data[data.index(b"JFIF") + 5] = 9
    return bytes(data)


@pytest.mark.skipif(sys.platform != "linux", reason="silent with the GNU C library alone")
@pytest.mark.parametrize("kind", ["bytes before the end", "an early end", "an unknown version"])
def test_only_libjpeg_is_silent(kind: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(damaged(kind))
    aloud, silent = (
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(photo), how],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stderr
        for how in ("aloud", "silent")
    )
    assert "JPEG" in aloud or "JFIF" in aloud
    assert silent.splitlines() == ["working"] * 80 + ["C speaks", "C again"]

"""The benchmark of the data path runs, and says what others read from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
SPEEDS = {
    "ours_original",
    "ours_packed",
    "ours_raw",
    "torchvision_reference",
    "torchvision_v2",
    "decode_only",
}
SIZES = {"packed_bytes", "raw_bytes", "raw_bytes_read"}


def test_one_object_is_the_last_line(tmp_path: Path) -> None:
    height, width = 320, 480
    generator = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            small = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            photo = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            photo.save(tmp_path / "photos" / name / f"{i}.jpg")
    command = [sys.executable, "scripts/benchmark_loader.py", "--images", str(tmp_path / "photos")]
    done = subprocess.run(
        [*command, "--rounds", "1", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert set(figures) == SPEEDS | SIZES
    assert all(figure > 0 for figure in figures.values())
    assert all(any(line.startswith(name) for line in table) for name in SPEEDS)
    header = len(b"P6\n432 288\n255\n")
    assert figures["raw_bytes"] == 288 * 432 * 3 + header
    assert figures["raw_bytes_read"] < figures["raw_bytes"]

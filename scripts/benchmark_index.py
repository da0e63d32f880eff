"""Time the index of a large folder against torchvision's ImageFolder.

    python scripts/benchmark_index.py [--files 200000] [--json]

Makes empty files in 1,000 folders, in a temporary place, and times in one process, one after the
other in each round: the scan of ImageFolder, a first start of ours (a scan, and its index kept),
and a second start (the kept index). The times are medians of the rounds, all with the folders in
the system's cache. Memory is what Python holds for the finished index, by tracemalloc.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from torchvision.datasets import ImageFolder

from googlenet_train.data import index_cache
from googlenet_train.data.index import open_source

_CLASSES = 1_000
_LINKS = 60_000  # of one empty file; ext4 allows 65,000, and links need no inodes


def fill(root: Path, files: int) -> None:
    """`root`/n00000123/n00000123_4567.JPEG, with the lengths of ImageNet's names."""
    plain, links = root / "empty", 0
    plain.touch()
    for label in range(min(_CLASSES, files)):
        folder = root / "set" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label, files, _CLASSES):
            path = f"{folder}/n{label:08d}_{number * 7919 % 1_000_003}.JPEG"
            if links == _LINKS:
                plain.unlink()
                plain.touch()
                links = 0
            os.link(plain, path)
            links += 1


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def held(make: Callable[[], object]) -> int:
    """Bytes that the result of `make` keeps in memory."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


def measure(source: Path, rounds: int) -> dict[str, float | int]:
    """The figures that are printed."""
    where = str(source)
    reference, first, second, ratio = [], [], [], []
    for _ in range(rounds):
        reference.append(seconds(lambda: ImageFolder(where)))
        first.append(seconds(lambda: open_source(where, rescan=True)))
        second.append(seconds(lambda: open_source(where)))
        ratio.append(reference[-1] / first[-1])
    files = len(open_source(where))
    kept = index_cache.place(source)
    return {
        "files": files,
        "imagefolder_seconds": statistics.median(reference),
        "first_start_seconds": statistics.median(first),
        "second_start_seconds": statistics.median(second),
        "first_start_speedup": statistics.median(ratio),
        "imagefolder_bytes_per_file": held(lambda: ImageFolder(where)) / files,
        "ours_bytes_per_file": held(lambda: open_source(where)) / files,
        "kept_bytes_per_file": kept.stat().st_size / files if kept.exists() else 0,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--in", dest="place", help="where to make the files (default: TMPDIR)")
    given = parser.parse_args(arguments)
    if given.files < 1 or given.rounds < 1:
        parser.error("--files and --rounds start at 1")
    with tempfile.TemporaryDirectory(dir=given.place, prefix="benchmark-index-") as folder:
        root = Path(folder)
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(root / "cache")}):
            fill(root, given.files)
            time.sleep(2.5)  # an index is not kept while its folders are younger than 2 seconds
            figures = measure(root / "set", given.rounds)
    print(f"{figures['files']:,} files in {_CLASSES:,} folders        seconds   bytes per file")
    print(
        f"ImageFolder                     {figures['imagefolder_seconds']:9.3f}"
        f"   {figures['imagefolder_bytes_per_file']:9.1f}"
    )
    print(
        f"ours, first start (scan)        {figures['first_start_seconds']:9.3f}"
        f"   {figures['ours_bytes_per_file']:9.1f}   {figures['first_start_speedup']:.2f}x as fast"
    )
    print(
        f"ours, second start (kept index) {figures['second_start_seconds']:9.3f}"
        f"   {figures['kept_bytes_per_file']:9.1f} on disk"
    )
    if given.json:
        print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()

"""The verb `data index`: find the photos of a source anew, and say what is there."""

import json
import time
from pathlib import Path

import numpy as np

from googlenet_train.data import index_cache
from googlenet_train.data.folders import FolderFiles
from googlenet_train.data.index import Index, open_source
from googlenet_train.errors import ExitCode
from googlenet_train.verbs.arguments import Parser


def main(words: list[str]) -> int:
    """Run `googlenet-train data index WORDS`."""
    parser = Parser(
        prog="googlenet-train data index",
        description="Find the photos of a SOURCE anew, count them, and keep the index of a large "
        "folder for the next start. Training does so by itself when files were added, removed or "
        "renamed.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder of class folders, or tar shards")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(words)

    began = time.perf_counter()
    index = open_source(given.source, rescan=True)
    seconds = time.perf_counter() - began
    kept, why_not = _kept(index)
    counts = index.counts()
    low, high = int(np.argmin(counts)), int(np.argmax(counts))
    if given.json:
        answer = {
            "source": given.source,
            "photos": len(index),
            "classes": len(index.classes),
            "smallest": {"class": index.classes[low], "photos": int(counts[low])},
            "largest": {"class": index.classes[high], "photos": int(counts[high])},
            "seconds": round(seconds, 3),
            "kept_in": str(kept) if kept else None,
        }
        print(json.dumps(answer))
        return ExitCode.DONE
    print(f"photos    {len(index):,} in {len(index.classes):,} classes, found in {seconds:.2f} s")
    print(f"smallest  {counts[low]:,} ({index.classes[low]})")
    print(f"largest   {counts[high]:,} ({index.classes[high]})")
    print(f"kept in   {kept}" if kept else f"not kept  {why_not}")
    return ExitCode.DONE


def _kept(index: Index) -> tuple[Path | None, str]:
    """Where the index lies now, or why it was not kept."""
    if not isinstance(index.files, FolderFiles):
        return None, "only the index of a folder is kept; this source is read at every start"
    if len(index) < index_cache.MIN_PHOTOS:
        return None, f"fewer than {index_cache.MIN_PHOTOS:,} photos are found again at every start"
    if index_cache.load(index.files.root) is None:
        return None, (
            "it can be kept neither while the folders change (within the last 2 seconds, or by a "
            "link whose target is missing) nor where the user's cache folder cannot be written"
        )
    return index_cache.place(index.files.root), ""

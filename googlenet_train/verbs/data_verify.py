"""The verb `data verify`: read and decode every photo of a source, and find those stored twice."""

import argparse
import json
import sys
import time
from typing import NamedTuple

import numpy as np

from googlenet_train import distributed
from googlenet_train.data.digests import SIZE, copies, digest
from googlenet_train.data.index import Index, open_source
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs.arguments import Parser


class _Found(NamedTuple):
    bad: list[tuple[str, str]]  # path and reason, in the order of the index
    copies: list[list[int]]  # groups of photos with the same bytes
    seconds: float


def main(words: list[str]) -> int:
    """Run `googlenet-train data verify WORDS`."""
    parser = Parser(
        prog="googlenet-train data verify",
        description="Read and decode every photo of a SOURCE wholly. Bad ones are listed as "
        "PATH<TAB>REASON; the exit code is 3 if there are any, otherwise 0.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder of class folders, or tar shards")
    parser.add_argument(
        "--workers", type=_count, default=None, help="threads (default: one per core)"
    )
    parser.add_argument(
        "--duplicates",
        action="store_true",
        help="list photos with the same bytes, one group a line, separated by tabs",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    given = parser.parse_args(words)

    index = open_source(given.source, rescan=True)
    found = _verify(index, given.workers or distributed.cores(), listing=not given.json)
    across = sum(len(set(index.labels[group].tolist())) > 1 for group in found.copies)
    spare = sum(len(group) - 1 for group in found.copies)
    if given.json:
        answer = {
            "source": given.source,
            "photos": len(index),
            "bad": [{"path": path, "reason": reason} for path, reason in found.bad],
            "duplicates": spare,
            "groups": len(found.copies),
            "groups_across_classes": across,
            "seconds": round(found.seconds, 3),
        }
        if given.duplicates:
            answer["copies"] = [[index.name(i) for i in group] for group in found.copies]
        print(json.dumps(answer))
    else:
        if given.duplicates:
            for group in found.copies:
                print("same bytes\t" + "\t".join(_field(index.name(i)) for i in group))
        print(
            f"{len(index):,} photos, bad: {len(found.bad):,}, duplicates: {spare:,} "
            f"(of {len(found.copies):,}; across classes: {across:,}), {found.seconds:.1f} s"
        )
    return ExitCode.DATA if found.bad else ExitCode.DONE


def _verify(index: Index, workers: int, *, listing: bool) -> _Found:
    """Decode every photo. With `listing` each bad one is printed as soon as it is found."""
    import torch
    from tqdm import tqdm

    from googlenet_train.data.decode import UndecodableImage, decode
    from googlenet_train.data.loader import ahead

    torch.set_num_threads(1)  # the threads are ours: one photo each

    def check(i: int) -> tuple[bytes, str]:
        """The digest of the i-th photo (none where it cannot be read) and what is wrong with it."""
        try:
            data = index.read(i)
        except UserError as error:
            return b"", str(error)
        try:
            decode(data)
        except UndecodableImage as error:
            return digest(data), str(error)
        return digest(data), ""

    began = time.perf_counter()
    bad: list[tuple[str, str]] = []
    digests = np.zeros((len(index), SIZE), dtype=np.uint8)
    read = np.ones(len(index), dtype=bool)
    with tqdm(
        total=len(index),
        unit="img",
        desc="verify",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    ) as bar:
        for i, (hashed, reason) in enumerate(ahead(check, range(len(index)), workers)):
            if hashed:
                digests[i] = np.frombuffer(hashed, dtype=np.uint8)
            else:
                read[i] = False
            if reason:
                bad.append((index.name(i), reason))
                if listing:
                    with bar.external_write_mode():
                        print(f"{_field(index.name(i))}\t{_field(reason)}", flush=True)
            bar.update()
    places = np.flatnonzero(read).tolist()
    same = [[places[i] for i in group] for group in copies(digests[read])]
    return _Found(bad, same, time.perf_counter() - began)


def _field(text: str) -> str:
    """Text that keeps within its line and column."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)

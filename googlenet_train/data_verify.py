"""The verb `data verify`: read and decode every photo of a source, and find those stored twice."""

import argparse
import hashlib
import json
import sys
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from googlenet_train import distributed
from googlenet_train.arguments import Parser
from googlenet_train.data.index import Index, open_source
from googlenet_train.errors import ExitCode, UserError

_DIGEST = 16  # bytes: two different photos out of a billion share one with probability 1e-21


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
        digest = hashlib.blake2b(data, digest_size=_DIGEST).digest()
        try:
            decode(data)
        except UndecodableImage as error:
            return digest, str(error)
        return digest, ""

    began = time.perf_counter()
    bad: list[tuple[str, str]] = []
    digests = np.zeros((len(index), _DIGEST), dtype=np.uint8)
    read = np.ones(len(index), dtype=bool)
    with tqdm(
        total=len(index),
        unit="img",
        desc="verify",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    ) as bar:
        for i, (digest, reason) in enumerate(ahead(check, range(len(index)), workers)):
            if digest:
                digests[i] = np.frombuffer(digest, dtype=np.uint8)
            else:
                read[i] = False
            if reason:
                bad.append((index.name(i), reason))
                if listing:
                    with bar.external_write_mode():
                        print(f"{_field(index.name(i))}\t{_field(reason)}", flush=True)
            bar.update()
    return _Found(bad, _copies(digests, np.flatnonzero(read)), time.perf_counter() - began)


def _copies(digests: npt.NDArray[np.uint8], among: npt.NDArray[np.intp]) -> list[list[int]]:
    """Groups of two and more rows that are equal, in the order of their first members."""
    _, group, size = np.unique(digests[among], axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)  # numpy 2.0 gave it a second axis
    shared = np.flatnonzero(size[group] > 1)
    groups: dict[int, list[int]] = {}
    for place in shared.tolist():
        groups.setdefault(int(group[place]), []).append(int(among[place]))
    return list(groups.values())


def _field(text: str) -> str:
    """Text that keeps within its line and column."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)

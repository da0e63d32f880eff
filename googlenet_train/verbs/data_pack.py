"""The verb `data pack`: class folders into tar shards."""

import argparse
import errno
import sys
import time
from pathlib import Path

from googlenet_train import distributed
from googlenet_train.data import class_names
from googlenet_train.data.index import open_source
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import write_durably
from googlenet_train.verbs.arguments import Parser

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(words: list[str]) -> int:
    """Run `googlenet-train data pack WORDS`."""
    given = _parser().parse_intermixed_args(words)
    if given.codec == "raw" and given.short_side is None:
        raise UserError(
            "--codec raw needs a short side: with --short-side none photos are stored unchanged",
            ExitCode.USAGE,
        )
    destination: Path = given.destination.expanduser()
    if destination.resolve().is_relative_to(Path(given.source).expanduser().resolve()):
        raise UserError(
            f"'{destination}' lies inside '{given.source}', where it would count as a class; give "
            "a folder beside it",
            ExitCode.USAGE,
        )
    index = open_source(given.source)

    import torch
    from tqdm import tqdm

    from googlenet_train.data.pack import Settings, pack

    torch.set_num_threads(1)  # the threads are ours: one photo each
    settings = Settings(
        given.short_side,
        given.quality if given.codec == "jpeg" and given.short_side is not None else None,
        given.codec,
        given.shard_size,
    )
    began = time.monotonic()
    with tqdm(total=len(index), unit="img", desc="pack", disable=None, dynamic_ncols=True) as bar:

        def progress(photos: int) -> None:
            if photos > bar.n + 1:  # those of an earlier call are not counted into the speed
                bar.initial = bar.n = photos
            bar.update(photos - bar.n)

        try:
            packed = pack(
                index,
                destination,
                settings,
                workers=given.workers or distributed.cores(),
                skip_unreadable=given.skip_unreadable,
                progress=progress,
            )
        except KeyboardInterrupt:
            print("\nthe same command goes on from here", end="", file=sys.stderr)
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"no space left for '{destination}'; free some, then run the same command again: "
                "it goes on",
                ExitCode.STORAGE,
            ) from None

    for place, reason in packed.unreadable:
        print(f"unreadable {index.name(place)}: {reason}", file=sys.stderr)
    if not packed.complete:
        raise UserError(
            f"{len(packed.unreadable):,} of {len(index):,} photos cannot be read, and the pack is "
            "not complete. Repair or replace them, or add --skip-unreadable, and run the same "
            "command again: it goes on",
            ExitCode.DATA,
        )
    names = Path(given.source).expanduser() / class_names.FILE
    if names.is_file():  # so that the pack's classes are called what the photos' are
        write_durably(destination / class_names.FILE, names.read_bytes())
    print(
        f"packed   {packed.photos:,} photos, {packed.size / 1e6:,.1f} MB in "
        f"{packed.shards:,} shard{'s' * (packed.shards != 1)}, {time.monotonic() - began:.0f} s"
    )
    print(f"use      data.train={destination} (or data.val)")
    return ExitCode.DONE


def _parser() -> Parser:
    parser = Parser(
        prog="googlenet-train data pack",
        description="Pack photos into tar shards (WebDataset layout) that training reads in place. "
        "A pack that was stopped goes on with the same command.",
    )
    parser.add_argument("source", metavar="SRC", help="any SOURCE, such as a folder of classes")
    parser.add_argument("destination", metavar="DST", type=Path, help="a new or empty folder")
    parser.add_argument(
        "--short-side",
        metavar="PIXELS|none",
        type=_short_side,
        default=288,
        help="shrink larger photos to this short side (default: 288); smaller ones, and with "
        "`none` all, are stored unchanged",
    )
    parser.add_argument(
        "--quality", type=_quality, default=92, help="of shrunken JPEGs, 1 to 100 (default: 92)"
    )
    parser.add_argument(
        "--codec",
        choices=["jpeg", "raw"],
        default="jpeg",
        help="raw: shrunken photos as plain pixels, about 8 times the size, nothing to decode",
    )
    parser.add_argument(
        "--shard-size", metavar="SIZE", type=_size, default="256MB", help="default: 256MB"
    )
    parser.add_argument(
        "--workers", type=_workers, default=None, help="threads (default: one per core)"
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out photos that cannot be read"
    )
    return parser


def _short_side(text: str) -> int | None:
    if text == "none":
        return None
    return _integer(text, 1, 65_500, "pixels, or none")


def _quality(text: str) -> int:
    return _integer(text, 1, 100, "1 to 100")


def _workers(text: str) -> int:
    return _integer(text, 1, 1024, "1 to 1024")


def _integer(text: str, low: int, high: int, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return int(text)


def _size(text: str) -> int:
    """`256MB` as bytes."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 256MB (KB, MB, GB)")
    return int(number) * _UNITS[unit]

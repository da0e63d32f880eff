"""The verb `check`: whatever can be known of a run before its step 0."""

import argparse

from googlenet_train.machine import allocator
from googlenet_train.verbs import bare_folder
from googlenet_train.verbs.arguments import Parser, add_config


def main(words: list[str]) -> int:
    """Run `googlenet-train check WORDS`."""
    parser = Parser(
        prog="googlenet-train check",
        usage="googlenet-train check --config FILE [--all] [--gpus 1,8] [--json] [KEY=VALUE ...]\n"
        "       googlenet-train check PHOTOS/ [--all] [--json] [KEY=VALUE ...]",
        description="Look at everything that a run needs, and take its first steps, without "
        "training or leaving anything behind. The exit code is 0 only if the run would start.",
    )
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="check that a run can go on")
    parser.add_argument(
        "--all", action="store_true", help="decode every photo, compare all contents"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    more = parser.add_argument_group("more GPUs", "a table of what the run would take on them")
    more.add_argument("--gpus", metavar="1,8,64", type=_counts, help="how many")
    more.add_argument(
        "--images-per-second", metavar="N", type=_rate, help="of one GPU (default: of this device)"
    )
    more.add_argument(
        "--link", metavar="GBIT", type=_rate, help="between machines, Gbit/s (default: 25)"
    )
    more.add_argument(
        "--storage", metavar="MB", type=_rate, help="of the file system, MB/s (default: 2000)"
    )
    more.add_argument(
        "--failures", metavar="DAYS", type=_rate, help="between those of a machine (default: 30)"
    )
    given = parser.parse_intermixed_args(words)

    allocator.keep_freed_memory()
    loaded = bare_folder.load(given.config, given.words)
    from googlenet_train.checks.check import check
    from googlenet_train.checks.scaling import Known

    return check(
        loaded,
        resume=given.resume,
        everything=given.all,
        as_json=given.json,
        gpus=given.gpus or (),
        known=Known(given.images_per_second, given.link, given.storage, given.failures),
    )


def _counts(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,8,64")
    return [int(number) for number in numbers]


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value

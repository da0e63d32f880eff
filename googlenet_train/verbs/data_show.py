"""The verb `data show`: a picture of what the network sees of its training images."""

import argparse
import sys
from functools import partial
from pathlib import Path

from googlenet_train.data import mixing, order
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run.launch import at
from googlenet_train.run.sources import open_photos
from googlenet_train.verbs import bare_folder
from googlenet_train.verbs.arguments import Parser, add_config

ENDINGS = (".png", ".jpg", ".jpeg")


def main(words: list[str]) -> int:
    """Run `googlenet-train data show WORDS`: write the picture, print where it is."""
    parser = Parser(
        prog="googlenet-train data show",
        usage="googlenet-train data show --config FILE [--images M] [--views N] [--out FILE] "
        "[KEY=VALUE ...]\n       googlenet-train data show PHOTOS/ [--images M] [--views N] "
        "[--out FILE] [KEY=VALUE ...]",
        description="Write a picture of training images, each with the boxes cut from it and the "
        "augmented views that training makes of them in its first epochs.",
    )
    add_config(parser)
    parser.add_argument(
        "--images",
        metavar="M",
        type=_count,
        default=6,
        help="rows: images, spread over the data (default: 6)",
    )
    parser.add_argument(
        "--views", metavar="N", type=_count, default=6, help="columns: epochs (default: 6)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="a .png or .jpg (default: <config name>-views.jpg)"
    )
    given = parser.parse_intermixed_args(words)

    loaded = bare_folder.load(given.config, given.words)
    out = _checked(Path(given.out or f"{loaded.name}-views.jpg"))
    config = loaded.config
    index, _ = open_photos(config.data, partial(at, loaded))
    if config.augment.mixup or config.augment.cutmix:
        order.check_divides(config.optimizer.batch_size, 1, config.parts)
        order.steps_per_epoch(len(index), config.optimizer.batch_size)
        mixing.check_pairs(config.optimizer.batch_size, 1, config.parts)

    print("loading PyTorch…", file=sys.stderr, flush=True)
    from googlenet_train.verbs.view_sheet import view_sheet

    images = min(given.images, len(index))
    sheet = view_sheet(index, config, title=loaded.path.name, images=images, views=given.views)
    sheet.save(out, quality=92)
    print(f"{out}: {images} training images, as their first {given.views} epochs show them")
    return ExitCode.DONE


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:  # a picture with more is of no use to a person
        raise argparse.ArgumentTypeError(f"must be 1 to 100, not {number}")
    return number


def _checked(out: Path) -> Path:
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: must end in .png or .jpg", ExitCode.USAGE)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}", ExitCode.USAGE)
    return out

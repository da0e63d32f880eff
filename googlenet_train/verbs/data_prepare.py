"""The verb `data prepare`: ImageNet and Imagenette as folders of classes."""

import importlib.util
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs.arguments import Parser

IMAGENET_PAGE = "https://image-net.org/download-images"


def main(words: list[str]) -> int:
    """Run `googlenet-train data prepare WORDS`."""
    parser = Parser(
        prog="googlenet-train data prepare",
        description="Lay out a known data set as DST/train/<class>/ and DST/val/<class>/.",
    )
    sets = parser.add_subparsers(dest="name", metavar="imagenet|imagenette", required=True)
    imagenet = sets.add_parser("imagenet", help="from the official archives, which stay")
    imagenet.add_argument(
        "--archives",
        metavar="DIR",
        type=Path,
        required=True,
        help=f"where the three ILSVRC2012 archives lie; they come from {IMAGENET_PAGE}",
    )
    imagenette = sets.add_parser("imagenette", help="ten classes of it, downloaded (1.5 GB)")
    for each in (imagenet, imagenette):
        each.add_argument("--out", metavar="DST", type=Path, required=True)
    given = parser.parse_args(words)
    destination: Path = given.out.expanduser()
    if given.name == "imagenet":
        prepare_imagenet(given.archives.expanduser(), destination)
    else:
        prepare_imagenette(destination)
    print(f"use      data.train={destination / 'train'} data.val={destination / 'val'}")
    return ExitCode.DONE


def prepare_imagenet(archives: Path, destination: Path) -> None:
    """Unpack ILSVRC2012 by torchvision's parsers, each split whole or not at all.

    A split that is there already is left as it is. Raises UserError: data for an archive that is
    missing or damaged, storage where the disk is too small.
    """
    from torchvision.datasets import imagenet

    paths = {part: archives / name for part, (name, _) in imagenet.ARCHIVE_META.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise _refusal(
            f"'{archives}' lacks {', '.join(missing)}; download from {IMAGENET_PAGE}, keep the name"
        )
    if importlib.util.find_spec("scipy") is None:
        raise _refusal("ImageNet's devkit is a MATLAB file, which needs SciPy: pip install scipy")
    destination.mkdir(parents=True, exist_ok=True)
    # Given as root the parsers take the destination: the archives' own folder may be read-only.
    root = str(destination)
    train, val, devkit = (str(paths[part].resolve()) for part in ("train", "val", "devkit"))

    def unpack_val(folder: str) -> None:
        imagenet.parse_devkit_archive(root, file=devkit)
        imagenet.parse_val_archive(root, file=val, folder=folder)
        (destination / imagenet.META_FILE).unlink()

    def unpack_train(folder: str) -> None:
        imagenet.parse_train_archive(root, file=train, folder=folder)

    _unpack(destination / "val", [paths["val"], paths["devkit"]], unpack_val)
    _unpack(destination / "train", [paths["train"]], unpack_train)


def _unpack(split: Path, archives: Sequence[Path], unpack: Callable[[str], None]) -> None:
    """Make the folder `split` by `unpack(name of a folder beside it)`."""
    if split.exists():
        _say(f"{split.name:<8} is there already")
        return
    partial = split.with_name(f".{split.name}.partial")
    if partial.exists():  # of a call that was stopped
        shutil.rmtree(partial)
    needed = sum(archive.stat().st_size for archive in archives)
    free = shutil.disk_usage(split.parent).free
    if free < needed:
        raise UserError(
            f"'{split.parent}' has {free / 1e9:.1f} GB free, but {split.name} needs "
            f"{needed / 1e9:.1f} GB",
            ExitCode.STORAGE,
        )
    _say(f"{split.name:<8} checking and unpacking {archives[0].name} ({needed / 1e9:.1f} GB)")
    try:
        unpack(partial.name)
    except (RuntimeError, tarfile.TarError, EOFError, zlib.error) as error:
        damaged = next((path for path in archives if path.name in str(error)), archives[0])
        raise _refusal(f"'{damaged}' is damaged or not the official file; download it again") from (
            None
        )
    partial.rename(split)


def prepare_imagenette(destination: Path) -> None:
    """Download Imagenette (full size) by torchvision and move its splits to `destination`.

    Raises UserError (data) where it cannot be downloaded.
    """
    from torchvision.datasets import Imagenette

    missing = [split for split in ("train", "val") if not (destination / split).exists()]
    if not missing:
        _say("imagenette is there already")
        return
    partial = destination / ".imagenette.partial"
    unpacked = partial / "imagenette2"
    if unpacked.exists():  # by a call that was stopped; its download is used again
        shutil.rmtree(unpacked)
    destination.mkdir(parents=True, exist_ok=True)
    _say("imagenette downloading and unpacking 1.5 GB")
    try:
        Imagenette(partial, split="train", size="full", download=True)
    except (OSError, RuntimeError, tarfile.TarError, EOFError) as error:
        raise _refusal(f"cannot download Imagenette: {error}; try again later") from None
    for split in missing:
        (unpacked / split).rename(destination / split)
    shutil.rmtree(partial)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refusal(message: str) -> UserError:
    return UserError(message, ExitCode.DATA)

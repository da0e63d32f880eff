"""What a command trains on: `--config FILE`, or a bare folder of photos in its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from googlenet_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from googlenet_train.config.file import Loaded

PHOTOS_CONFIG = "folder.yaml"  # what a bare folder of photos is trained with


def near(path: Path) -> list[str]:
    """The folder beside a path that does not exist that may have been meant, if there is one."""
    from difflib import get_close_matches

    if not path.parent.is_dir():
        return []
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    return [str(path.parent / name) for name in get_close_matches(path.name, folders, n=1)]


def _is_setting(word: str) -> bool:
    from googlenet_train.config.text import properties

    return word in properties()


def load(config: str | None, words: Sequence[str]) -> Loaded:
    """The settings of `--config FILE KEY=VALUE ...`, or of `PHOTOS KEY=VALUE ...`.

    PHOTOS, a folder, stands for `--config folder.yaml data.train=PHOTOS`; the run is called after
    it. Where it holds train/ and val/, these are data.train and data.val.
    """
    from googlenet_train.config import file as config_file

    photos = [word for word in words if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in words if word not in photos]
    if config is not None:
        if photos:
            raise UserError(
                f"{photos[0]!r} is no KEY=VALUE. With --config the folder of the photos is "
                f"data.train={photos[0]}",
                ExitCode.USAGE,
            )
        return config_file.load(config, overrides)
    if not photos:
        raise UserError(
            "which config? Pass --config FILE or a folder of photos, or try --config "
            "quickstart.yaml",
            ExitCode.USAGE,
        )
    given = photos[0]
    folder = Path(given).expanduser()
    if key := next((word for word in photos if _is_setting(word)), None):
        raise UserError(f"{key} is a setting: write {key}=VALUE, without spaces.", ExitCode.USAGE)
    if len(photos) > 1:
        raise UserError(
            f"{given!r} and {photos[1]!r}: give one folder, which holds a folder for each class",
            ExitCode.USAGE,
        )
    if folder.is_file():
        raise UserError(
            f"{given!r} is a file. If it is a config, pass --config {given}; photos are given by "
            "their folder",
            ExitCode.USAGE,
        )
    if not folder.is_dir():
        meant = near(folder)
        hint = f"; did you mean '{meant[0]}'?" if meant else ""
        raise UserError(f"no folder '{given}'{hint}", ExitCode.DATA)
    sources = {"data.train": folder}
    if all((folder / split).is_dir() for split in ("train", "val")):
        sources = {"data.train": folder / "train", "data.val": folder / "val"}
    # In quotes, for a name may hold anything that YAML would read as something else.
    stated = [f"{key}={json.dumps(str(path), ensure_ascii=False)}" for key, path in sources.items()]
    loaded = config_file.load(PHOTOS_CONFIG, [*stated, *overrides])
    return replace(loaded, called=folder.resolve().name)

"""A trained network for use in Python: `googlenet_train.load`."""

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from googlenet_train.data.decode import UndecodableImage, decode, from_pillow
from googlenet_train.data.loader import to_device
from googlenet_train.data.orientation import image_orientation, orientation, turned
from googlenet_train.data.views import views_of
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.run.trained import Trained, open_trained

Photo = Image.Image | str | PathLike[str]

# What the errors of a command line say, as it is written in Python.
_IN_PYTHON = {"--checkpoint ": "checkpoint=", "RUN is": "`run` is", ", and comes first": ""}


class Loaded(NamedTuple):
    """What `googlenet_train.load` gives; it unpacks into its three parts."""

    model: GoogLeNet  # on the CPU, in evaluation mode: (N, 3, s, s) to logits (N, classes)
    classes: tuple[str, ...]  # what people call them
    preprocess: Callable[[Photo], Tensor]  # to float32 (3, s, s), as evaluation does


def load(
    run: str | PathLike[str], *, checkpoint: str | int = "last", weights: str = "ema"
) -> Loaded:
    """See `googlenet_train.load`."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', not {weights!r}")
    device = torch.device("cpu")
    trained = _open(os.fsdecode(run), checkpoint, device)
    if weights == "ema" and trained.averages:
        trained.model.load_state_dict(trained.averages[max(trained.averages, key=float)])
    setting = Setting.of(trained.config, device)

    def preprocess(photo: Photo) -> Tensor:
        """A Pillow image or the path of an image file as float32 of shape (3, s, s).

        Raises UndecodableImage (a ValueError) for a file that is no image, OSError for none.
        """
        if isinstance(photo, Image.Image):
            pixels, turn = from_pillow(photo.convert("RGB")), image_orientation(photo)
        else:
            data = Path(photo).read_bytes()
            try:
                pixels, turn = decode(data), orientation(data)
            except UndecodableImage as error:
                raise UndecodableImage(f"{photo}: {error}") from None
        if setting.exif_orientation:
            pixels = turned(pixels, turn)
        views = views_of(pixels, setting.image_size, fit=setting.fit)
        return to_device(views, device, setting.mean, setting.std)[0]

    return Loaded(trained.model, trained.names, preprocess)


def _open(run: str, checkpoint: str | int, device: torch.device) -> Trained:
    """`open_trained`, with errors for people who wrote no command line.

    Raises UserError as it does, TypeError where `checkpoint` is neither a text nor a number.
    """
    if not isinstance(checkpoint, str | int):
        raise TypeError(f"checkpoint must be 'last', 'best' or a step, not {checkpoint!r}")
    if not run:
        raise UserError(
            "run is empty. Give the folder of a run, such as runs/quickstart, or a checkpoint.",
            ExitCode.USAGE,
        )
    try:
        return open_trained(run, str(checkpoint), device)
    except UserError as error:
        message = str(error)
        for typed, written in _IN_PYTHON.items():
            message = message.replace(typed, written)
        raise UserError(message, error.exit_code) from None

"""GoogLeNet ("Going Deeper with Convolutions", 2014), trained from one YAML file.

From Python:

    model, classes, preprocess = googlenet_train.load("runs/quickstart")
    logits = model(preprocess(PIL.Image.open("photo.jpg"))[None])
    print(classes[logits.argmax()])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from googlenet_train.version import __version__

if TYPE_CHECKING:
    from os import PathLike

    from googlenet_train.loading import Loaded

__all__ = ["__version__", "load"]


def load(
    run: str | PathLike[str], *, checkpoint: str | int = "last", weights: str = "ema"
) -> Loaded:
    """A trained network, its class names, and what makes its inputs: (model, classes, preprocess).

    `run` is a run folder or one checkpoint file, `checkpoint` is last (the newest that verifies),
    best, or a step, `weights` are ema (the longest average, where the run kept one) or raw.
    The model is a `torch.nn.Module` on the CPU, in evaluation mode and in float32; it takes a batch
    (N, 3, s, s) and gives logits (N, number of classes). `preprocess` takes a Pillow image or the
    path of an image file and gives a float32 tensor (3, s, s), framed and normalised as evaluation
    does. PyTorch is loaded by this call, not by `import googlenet_train`.

    Raises errors.UserError where there is no such run or it is damaged, TypeError where `run` is no
    path or `checkpoint` neither a text nor a number.
    """
    from googlenet_train import loading

    return loading.load(run, checkpoint=checkpoint, weights=weights)

"""The network as torch.compile makes it, for training (`device.compile: true`)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from googlenet_train import distributed, numeric, parallel
from googlenet_train.errors import ExitCode, UserError

_SIZES = 64  # of images that a run may have; with more the last ones would run as written


class Compiled(nn.Module):
    """`model`, compiled for batches of `count` images; of another number it runs as written.

    Each size of the images is compiled once, with all shapes fixed. Left to itself torch.compile
    makes those variable that it has seen change: a step would depend on the batches before it, and
    a run that resumes has seen others. The model stays as it is, and its tensors keep their names.
    """

    def __init__(self, model: nn.Module, count: int, *, deterministic: bool) -> None:
        super().__init__()
        import torch._dynamo  # a second of its own, so only where it is needed
        import torch._inductor

        torch._dynamo.config.recompile_limit = _SIZES
        # That what an lru_cache keeps is computed anew is right, and no news to anyone.
        warnings.filterwarnings("ignore", message=r"Dynamo detected a call to a `functools\.lru_c")
        # On a GPU it takes the fastest of several kernels, which is not the same one each time.
        pin = deterministic and "deterministic" in torch._inductor.list_options()
        self.model = model
        self.count = count
        self.translated: Callable[[Tensor], object] = torch.compile(
            model.forward, dynamic=False, options={"deterministic": True} if pin else None
        )

    def forward(self, images: Tensor) -> object:
        whole = len(images) == self.count
        return self.translated(images) if whole else self.model(images)


@contextmanager
def asked_for(setting: str, instead: str) -> Iterator[None]:
    """Raise UserError (usage) where what is done here cannot be compiled on this machine."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{setting} nothing can be compiled here ({reason}). torch.compile needs a C++ "
            "compiler and Python's headers (Debian: g++ and python3-dev), on a GPU Triton. "
            f"Install them, or {instead}.",
            ExitCode.USAGE,
        ) from None


def warm_up(network: nn.Module, guard: numeric.Guard, images: Tensor, precision: str) -> None:
    """Compile now, with a step on `images` that changes nothing. They look like all to come.

    Raises UserError (usage) where this machine cannot compile.
    """
    failed = None
    try:
        with asked_for("device.compile: true, but", instead="write false"):
            parallel.take_part(
                network, guard, images.device, images.shape[-1], precision, images=images
            )
    except UserError as error:
        failed = error
    distributed.raise_first(failed)
    for parameter in network.parameters():
        parameter.grad = None

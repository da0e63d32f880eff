"""The training loss: the network's and, weighted, its auxiliary heads' (paper, section 5)."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from googlenet_train.model.googlenet import GoogLeNetOutputs


class Losses(NamedTuple):
    """Means over the images of one batch, in nats; `total` is what is differentiated."""

    total: Tensor
    main: Tensor
    aux1: Tensor | None = None
    aux2: Tensor | None = None


def googlenet_loss(
    outputs: Tensor | GoogLeNetOutputs,
    targets: Tensor,
    *,
    aux_weight: float = 0.3,
    label_smoothing: float = 0.0,
) -> Losses:
    """CE(main) + aux_weight (CE(aux1) + CE(aux2)), label smoothing on all three alike.

    `outputs`: logits of shape (N, num_classes), alone or with the heads'. `targets`: (N,) class
    numbers. A network without heads has the main loss alone.
    """

    def cross_entropy(logits: Tensor) -> Tensor:
        # float32: a sum of exponentials has no room in bfloat16's eight bits.
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

    if isinstance(outputs, Tensor):
        main = cross_entropy(outputs)
        return Losses(main, main)
    main, aux1, aux2 = (cross_entropy(logits) for logits in outputs)
    return Losses(main + aux_weight * (aux1 + aux2), main, aux1, aux2)

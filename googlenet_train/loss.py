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
    second: tuple[Tensor, Tensor] | None = None,
    aux_weight: float = 0.3,
    label_smoothing: float = 0.0,
) -> Losses:
    """CE(main) + aux_weight (CE(aux1) + CE(aux2)), label smoothing on all three alike.

    `outputs`: logits of shape (N, num_classes), alone or with the heads'. `targets`: (N,) class
    numbers. A network without heads has the main loss alone.

    `second`, of mixed images: other class numbers and their shares s, both (N,). Each CE is then
    (1 - s) CE(targets) + s CE(other), image by image.
    """

    def cross_entropy(logits: Tensor) -> Tensor:
        # float32: a sum of exponentials has no room in bfloat16's eight bits.
        logits = logits.float()
        if second is None:
            return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        others, shares = second
        first, other = (
            F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
            for labels in (targets, others)
        )
        return ((1 - shares) * first + shares * other).mean()

    if isinstance(outputs, Tensor):
        main = cross_entropy(outputs)
        return Losses(main, main)
    main, aux1, aux2 = (cross_entropy(logits) for logits in outputs)
    return Losses(main + aux_weight * (aux1 + aux2), main, aux1, aux2)

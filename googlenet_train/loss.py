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
    class_weights: Tensor | None = None,
) -> Losses:
    """CE(main) + aux_weight (CE(aux1) + CE(aux2)), label smoothing on all three alike.

    `outputs`: logits of shape (N, num_classes), alone or with the heads'. `targets`: (N,) class
    numbers. A network without heads has the main loss alone.

    `second`, of mixed images: other class numbers and their shares s, both (N,). Each CE is then
    (1 - s) CE(targets) + s CE(other), image by image.

    `class_weights`, (num_classes,): each CE is then the weighted mean of torch's CrossEntropyLoss,
    sum of w CE over the sum of the images' w (see `total_weight`).
    """

    def cross_entropy(logits: Tensor) -> Tensor:
        # float32: a sum of exponentials has no room in bfloat16's eight bits.
        logits = logits.float()
        if second is None:
            return F.cross_entropy(logits, targets, class_weights, label_smoothing=label_smoothing)
        others, shares = second
        first, other = (
            F.cross_entropy(
                logits, labels, class_weights, label_smoothing=label_smoothing, reduction="none"
            )
            for labels in (targets, others)
        )
        mixed = (1 - shares) * first + shares * other
        if class_weights is None:
            return mixed.mean()
        return mixed.sum() / _image_weights(targets, second, class_weights).sum()

    if isinstance(outputs, Tensor):
        main = cross_entropy(outputs)
        return Losses(main, main)
    main, aux1, aux2 = (cross_entropy(logits) for logits in outputs)
    return Losses(main + aux_weight * (aux1 + aux2), main, aux1, aux2)


def total_weight(
    targets: Tensor, second: tuple[Tensor, Tensor] | None, class_weights: Tensor | None
) -> float:
    """What the mean of `googlenet_loss` divides by: the images' weights, or their number."""
    if class_weights is None:
        return len(targets)
    return float(_image_weights(targets, second, class_weights).sum())


def _image_weights(
    targets: Tensor, second: tuple[Tensor, Tensor] | None, class_weights: Tensor
) -> Tensor:
    """(N,) weights; a mixed image has its classes' in their shares."""
    if second is None:
        return class_weights[targets]
    others, shares = second
    return (1 - shares) * class_weights[targets] + shares * class_weights[others]

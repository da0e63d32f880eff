"""GoogLeNet for inference alone: its own layers, rewritten so that the same logits come faster.

Nothing of the network's wiring is written a second time: a copy of it gets other layers.
The gains beside them are in images a second, 224 px, batch 64, on one core with AMX; all together
are 1.9 in bfloat16 and 1.09 in float32.
"""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from googlenet_train.model.googlenet import BasicConv2d, GoogLeNet
from googlenet_train.model.pooling import SurroundingMax

LARGEST_MAP = 25 << 20  # bytes; see `images_at_once`


def folded(
    model: GoogLeNet,
    weights: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> GoogLeNet:
    """A copy of `model` for inference: images in `dtype` to float32 logits (N, num_classes).

    With `weights` it has those of the same names, such as an average, instead of the model's own.
    It does not follow what happens to the model later: folding again costs less than a batch.
    """
    heads = (model.aux1, model.aux2)
    network = copy.deepcopy(model, {id(head): None for head in heads})  # without them
    network.requires_grad_(False).eval()
    if weights is not None:
        network.load_state_dict({k: w for k, w in weights.items() if not k.startswith("aux")})
    if not torch.stack([w.float().sum() for w in network.state_dict().values()]).isfinite().all():
        # oneDNN's ReLU makes 0 of NaN, and a broken network would only look like a bad one.
        nn.init.constant_(network.fc.bias, float("nan"))
    for path, layer in list(network.named_modules()):
        faster = _faster(layer, dtype)
        if faster is not None:
            owner, _, name = path.rpartition(".")
            setattr(network.get_submodule(owner), name, faster)
    setattr(network, "dropout", _ToFloat32())  # noqa: B010  # of another type than declared
    return network


def images_at_once(size: int, dtype: torch.dtype) -> int:
    """How many images of `size` pixels a CPU does best at once, in `dtype`.

    So many that the largest map, conv1's, stays below the 32 MiB from which on glibc asks the
    system for every tensor anew: x 1.36 in bfloat16 and x 1.30 in float32, and nothing where freed
    memory is kept (machine/allocator.py).
    """
    return max(1, LARGEST_MAP // (64 * ((size + 1) // 2) ** 2 * dtype.itemsize))


def _faster(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """What takes the place of a layer; None where it stays."""
    if isinstance(layer, BasicConv2d):
        return FoldedConv2d(layer, dtype)
    if isinstance(layer, SurroundingMax):
        return _SurroundingMax()
    if isinstance(layer, nn.MaxPool2d) and layer.kernel_size == 3:
        return _HalvingMax(3, stride=2, ceil_mode=True)
    return None


class FoldedConv2d(nn.Module):
    """A `BasicConv2d` in evaluation: BatchNorm's factor is in the weight, the rest in the bias."""

    weight: Tensor
    bias: Tensor

    def __init__(self, block: BasicConv2d, dtype: torch.dtype) -> None:
        super().__init__()
        conv, bn = block.conv, block.bn
        mean, variance = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
        factor = bn.weight / torch.sqrt(variance + bn.eps)
        weight = (conv.weight * factor[:, None, None, None]).to(dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", (bn.bias - mean * factor).to(dtype))
        self.stride, self.padding = list(conv.stride), list(cast("tuple[int, int]", conv.padding))
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, *, relu: bool = True) -> Tensor:
        if not _fuses(x):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            return F.relu(x, inplace=True) if relu else x
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, (1, 1), 1, x.shape
            )
        y = torch.ops.mkldnn._convolution_pointwise(
            x,
            self.packed,
            self.bias,
            self.padding,
            self.stride,
            (1, 1),
            1,
            "relu" if relu else "none",
            [],
            "",
        )
        return cast(Tensor, y)


def _fuses(x: Tensor) -> bool:
    """Whether packed weights and a ReLU in the convolution pay: x 1.19, in bfloat16 alone."""
    if torch.compiler.is_compiling():  # first: a compiler cannot see through what comes next
        return False
    bf16_on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return bf16_on_cpu and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class _SurroundingMax(SurroundingMax):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            x = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
            x = torch.maximum(torch.maximum(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])
            return torch.maximum(torch.maximum(x[..., :-2], x[..., 1:-1]), x[..., 2:])
        if not _maxima_pay(x):
            return super().forward(x)
        ordered = x.view(_BITS[x.dtype])
        return _largest_of_neighbours(_largest_of_neighbours(ordered, 2), 3).view(x.dtype)


class _HalvingMax(nn.MaxPool2d):
    """3x3 with stride 2 and `ceil_mode`."""

    def forward(self, x: Tensor) -> Tensor:
        if not _maxima_pay(x):
            return cast(Tensor, super().forward(x))
        return _halved(_halved(x.view(_BITS[x.dtype]), 2), 3).view(x.dtype)


# Read as integers, numbers from 0 up keep their order, and those below 0 stand below them. All
# pools read what went through a ReLU, or go through one next, so that it does not matter which of
# several numbers below 0 is taken.
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def _maxima_pay(x: Tensor) -> bool:
    """x 1.45 in bfloat16, x 1.04 in float32."""
    return x.device.type == "cpu" and x.dtype in _BITS and not torch.compiler.is_compiling()


def _largest_of_neighbours(x: Tensor, dim: int) -> Tensor:
    """The maximum of each number and the ones before and after it along `dim`."""
    n = x.shape[dim]
    if n == 1:
        return x
    pairs = torch.maximum(x.narrow(dim, 0, n - 1), x.narrow(dim, 1, n - 1))
    y = torch.empty_like(x)
    y.select(dim, 0).copy_(pairs.select(dim, 0))
    y.select(dim, n - 1).copy_(pairs.select(dim, n - 2))
    first, second = pairs.narrow(dim, 0, n - 2), pairs.narrow(dim, 1, n - 2)
    torch.maximum(first, second, out=y.narrow(dim, 1, n - 2))
    return y


def _halved(x: Tensor, dim: int) -> Tensor:
    """The maxima of the numbers 2i, 2i + 1 and, where there is one, 2i + 2 along `dim`."""
    n = x.shape[dim]
    y = torch.maximum(_every_second(x, dim, 0, n - n % 2), _every_second(x, dim, 1, n))
    third = _every_second(x, dim, 2, n)
    part = y.narrow(dim, 0, third.shape[dim])
    torch.maximum(part, third, out=part)
    return y


def _every_second(x: Tensor, dim: int, start: int, end: int) -> Tensor:
    along = [slice(None)] * dim
    along.append(slice(start, end, 2))
    return x[tuple(along)]


class _ToFloat32(nn.Module):
    """In dropout's place: the mean of the last maps, and the last layer in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()

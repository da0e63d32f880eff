"""GoogLeNet with batch normalisation: Szegedy et al., "Going Deeper with Convolutions" (2014).

The shapes in the comments are (channels, height, width) of a 224-pixel image: Table 1 of the paper.
`state_dict()` has torchvision's names exactly, so weights move both ways.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from googlenet_train.model.pooling import SurroundingMax, average_to_4x4

Variant = Literal["paper", "torchvision"]
Frozen = Literal["none", "stem", "all_but_head"]

STEM = ("conv1", "conv2", "conv3")
HEAD = ("fc", "aux1", "aux2")  # the classifiers, for other classes the part to be learnt anew


class GoogLeNetOutputs(NamedTuple):
    """Class scores (logits), each of shape (N, num_classes): the network's and its heads'."""

    main: Tensor
    aux1: Tensor  # the head on inception4a
    aux2: Tensor  # the head on inception4d


class BasicConv2d(nn.Module):
    """Convolution without bias, batch normalisation (eps 0.001), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor, *, relu: bool = True) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True) if relu else x


class Inception(nn.Module):
    """Four branches side by side, concatenated over channels (paper, Figure 2b).

    `kernel5x5` is the kernel of the branch that the paper calls 5x5.
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        *,
        kernel5x5: int,
    ) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(in_channels, ch1x1, kernel_size=1)
        self.branch2 = nn.Sequential(
            BasicConv2d(in_channels, ch3x3red, kernel_size=1),
            BasicConv2d(ch3x3red, ch3x3, kernel_size=3, padding=1),
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(in_channels, ch5x5red, kernel_size=1),
            BasicConv2d(ch5x5red, ch5x5, kernel_size=kernel5x5, padding=kernel5x5 // 2),
        )
        self.branch4 = nn.Sequential(
            SurroundingMax(),
            BasicConv2d(in_channels, pool_proj, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            branches = (self.branch1, self.branch2, self.branch3, self.branch4)
            return torch.cat([branch(x) for branch in branches], 1)
        reduce3, conv3 = cast(Iterable[BasicConv2d], self.branch2)
        reduce5, conv5 = cast(Iterable[BasicConv2d], self.branch3)
        one, three, five = _side_by_side(x, (self.branch1, reduce3, reduce5))
        return torch.cat([one, conv3(three), conv5(five), self.branch4(x)], 1)


def _side_by_side(x: Tensor, blocks: Sequence[BasicConv2d]) -> list[Tensor]:
    """`[block(x) for block in blocks]` of 1x1 blocks, with one convolution for all of them.

    x is read once instead of three times, and gets one gradient instead of the sum of three: with
    the ReLUs after the stem's pools 15 % of the step (224 px, batch 32, one core with AMX).
    """
    weights = [block.conv.weight for block in blocks]
    parts = torch.split(F.conv2d(x, torch.cat(weights)), [len(weight) for weight in weights], 1)
    flat = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if flat else torch.contiguous_format
    return [
        F.relu(block.bn(part.contiguous(memory_format=layout)), inplace=True)
        for block, part in zip(blocks, parts, strict=True)
    ]


class AuxiliaryHead(nn.Module):
    """A small classifier on a middle layer, for training only (paper, section 5)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = BasicConv2d(in_channels, 128, kernel_size=1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(average_to_4x4(x))
        x = F.relu(self.fc1(torch.flatten(x, 1)), inplace=True)
        return cast(Tensor, self.fc2(self.dropout(x)))


class GoogLeNet(nn.Module):
    """GoogLeNet. Input (N, 3, H, W), normalised; H and W at least 32.

    In training with heads it returns `GoogLeNetOutputs(main, aux1, aux2)`; otherwise the plain
    logits of shape (N, num_classes). `model(x, heads=True)` asks for the heads in evaluation too.

    `variant="paper"` is the network of the paper. `variant="torchvision"` differs in exactly two
    places, as torchvision's does: the "5x5" branch is 3x3, and the last max pool is 2x2. Weights
    that torchvision publishes need it.

    Raises ValueError for an unknown variant.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        variant: Variant = "paper",
        aux_logits: bool = True,
        dropout: float = 0.4,
        aux_dropout: float = 0.7,
    ) -> None:
        super().__init__()
        if variant not in ("paper", "torchvision"):
            raise ValueError(f"variant must be 'paper' or 'torchvision', not {variant!r}")
        paper = variant == "paper"

        def inception(*channels: int) -> Inception:
            return Inception(*channels, kernel5x5=5 if paper else 3)

        def halve(kernel_size: int = 3) -> nn.MaxPool2d:
            return nn.MaxPool2d(kernel_size, stride=2, ceil_mode=True)

        self.conv1 = BasicConv2d(3, 64, kernel_size=7, stride=2, padding=3)  # 64, 112, 112
        self.maxpool1 = halve()  # 64, 56, 56
        self.conv2 = BasicConv2d(64, 64, kernel_size=1)
        self.conv3 = BasicConv2d(64, 192, kernel_size=3, padding=1)
        self.maxpool2 = halve()  # 192, 28, 28

        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)  # 256, 28, 28
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = halve()  # 480, 14, 14

        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)  # 512, 14, 14
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)  # 528, 14, 14
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = halve(3 if paper else 2)  # 832, 7, 7

        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)  # 1024, 7, 7

        self.aux1 = AuxiliaryHead(512, num_classes, aux_dropout) if aux_logits else None
        self.aux2 = AuxiliaryHead(528, num_classes, aux_dropout) if aux_logits else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        self.apply(_initialise)
        self.frozen: tuple[str, ...] = ()

    def freeze(self, part: Frozen) -> None:
        """Learn nothing more in `part`: no gradients, and BatchNorm's statistics stand still."""
        if part == "stem":
            self.frozen = STEM
        elif part == "all_but_head":
            self.frozen = tuple(name for name, _ in self.named_children() if name not in HEAD)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "GoogLeNet":
        """As of any module, but what is frozen stays in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor, *, heads: bool | None = None) -> Tensor | GoogLeNetOutputs:
        heads = self.training if heads is None else heads
        aux1 = aux2 = None

        # The stem's ReLUs come after its pools: the same values and gradients, a quarter as many.
        x = F.relu(self.maxpool1(self.conv1(x, relu=False)), inplace=True)
        x = F.relu(self.maxpool2(self.conv3(self.conv2(x), relu=False)), inplace=True)
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        if heads and self.aux1 is not None:
            aux1 = self.aux1(x)
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        if heads and self.aux2 is not None:
            aux2 = self.aux2(x)
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        main = self.fc(self.dropout(x.mean((2, 3))))

        if aux1 is not None and aux2 is not None:
            return GoogLeNetOutputs(main, aux1, aux2)
        return cast(Tensor, main)


def _initialise(module: nn.Module) -> None:
    """Kaiming fan-out (He et al., 2015) for convolutions, N(0, 0.01) for linears; gamma 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)

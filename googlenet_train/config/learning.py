"""Settings of what is learnt and how: the network, its loss, a step, the schedule, averages."""

from math import isqrt
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from googlenet_train.config.types import (
    Auto,
    BelowOne,
    Count,
    Decays,
    NotNegative,
    Positive,
    Section,
    Share,
    Side,
    Text,
)

SIZE_STEP = 32  # pixels that growing training images grow by: one more pixel of the last maps


class Model(Section):
    """The network."""

    num_classes: Count | Auto = Field(
        default="auto",
        description="Number of classes. auto counts those of data.train, so that it cannot be "
        "wrong; a number is checked against the data.",
    )
    variant: Literal["paper", "torchvision"] = Field(
        default="paper",
        description="paper has true 5x5 branches; torchvision has 3x3 in their place and another "
        "last pool. Use torchvision to exchange weights with it.",
    )
    aux_logits: bool = Field(
        default=True,
        description="Train with the two auxiliary heads. They regularise, cost little, and are "
        "left out when the network is used.",
    )
    dropout: BelowOne = Field(
        default=0.4,
        description="Share of the 1,024 features dropped before the last layer. 0.4 is the "
        "paper's.",
    )
    aux_dropout: BelowOne = Field(
        default=0.7,
        description="Share of the features dropped in each auxiliary head. 0.7 is the paper's.",
    )

    init: Text | None = Field(
        default=None,
        description="Weights to start from: a run folder (its average), a checkpoint, a file of "
        "weights (.safetensors, torchvision's .pth), or torchvision for its published ones. null "
        "starts from random numbers.",
    )
    freeze: Literal["none", "stem", "all_but_head"] = Field(
        default="none",
        description="What keeps the weights of init: nothing, the stem (the first three "
        "convolutions), or all but the three classifiers. Few photos overfit less with more "
        "frozen; none learns most.",
    )

    @field_validator("freeze")
    @classmethod
    def _needs_init(cls, freeze: str, info: ValidationInfo) -> str:
        if freeze != "none" and info.data.get("init", "") is None:
            raise ValueError(
                f"{freeze} would keep random numbers: model.init is null. Give model.init weights "
                "to start from, or write none."
            )
        return freeze


class Loss(Section):
    """What a step makes smaller."""

    aux_weight: NotNegative = Field(
        default=0.3,
        description="Weight of each auxiliary head's loss beside the main one's 1. 0.3 is the "
        "paper's.",
    )
    label_smoothing: BelowOne = Field(
        default=0.0,
        description="Share of the target spread evenly over all classes, on all three heads. 0 is "
        "the paper's; 0.1 usually helps (Inception-v2 and later).",
    )
    class_weights: dict[Text, Positive] | Auto | None = Field(
        default=None,
        description="Weight of each class's images on all three heads; the loss is then the "
        "weighted mean. {name: weight} leaves the classes that it does not name at 1; auto is "
        "images / (classes x images of the class), whose mean over the images is 1. null weighs "
        "all alike: that serves top-1, weights serve the mean of the classes, but only in long "
        "training: in 15 epochs on clothes auto lowered both.",
    )


class Optimizer(Section):
    """One optimizer step."""

    name: Literal["sgd"] = Field(
        default="sgd",
        description="sgd with momentum is the paper's, and generalises best for this kind of "
        "network.",
    )
    lr: Positive = Field(
        default=0.1,
        description="Highest learning rate, used as written: it is not scaled by the batch. 0.1 is "
        "usual for a batch of 256 with batch normalisation; halve the batch, halve the rate.",
    )
    head_lr_scale: Positive = Field(
        default=1.0,
        description="Learning rate of the three classifiers, as a multiple of lr. With model.init "
        "they are often new and the rest is not, so that more may help in long training; in 5 "
        "epochs on clothes 10 shook what was known.",
    )
    momentum: BelowOne = Field(
        default=0.9,
        description="Share of the last update that is kept. 0.9 is the paper's.",
    )
    weight_decay: NotNegative = Field(
        default=1e-4,
        description="Pull of the weights towards 0, not applied to biases and batch "
        "normalisation. 1e-4 is usual for ImageNet; small data sets want more, such as 5e-4.",
    )
    batch_size: Count = Field(
        default=256,
        description="Images of one optimizer step, over all devices and accumulated parts "
        "together. 256 is the number that the default learning rate goes with.",
    )
    accumulate: Count | Auto = Field(
        default=1,
        description="Parts that a batch is cut into, one after the other, to fit in memory; auto "
        "finds the fewest that do. The batch and the learning rate stay as they are, so 1, the "
        "fastest, is the default.",
    )
    clip_norm: Positive | None = Field(
        default=None,
        description="Longest gradient allowed; a longer one is scaled down to it. null does not "
        "clip: batch normalisation keeps this network stable without.",
    )

    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="After a step whose loss or gradients are NaN or infinite, which changes "
        "nothing: stop the run, since such steps rarely come alone, or skip it and go on.",
    )
    skip_limit: Count = Field(
        default=3,
        description="With on_nonfinite: skip, how many steps in a row may be skipped. More stop "
        "the run: 3 passes over a bad batch or two, and not over a network that is broken.",
    )

    @field_validator("accumulate")
    @classmethod
    def _divides_batch(cls, accumulate: int | Auto, info: ValidationInfo) -> int | Auto:
        batch_size = info.data.get("batch_size")  # absent when it is wrong itself
        if accumulate != "auto" and batch_size is not None and batch_size % accumulate:
            small = [n for n in range(1, isqrt(batch_size) + 1) if batch_size % n == 0]
            divisors = sorted({*small, *(batch_size // n for n in small)})
            below = [n for n in divisors if n < accumulate][-1:]
            above = [n for n in divisors if n > accumulate][:1]
            raise ValueError(
                f"optimizer.batch_size {batch_size} cannot be cut into {accumulate} equal parts. "
                f"The nearest that divide it: {', '.join(map(str, below + above))}."
            )
        return accumulate


class ImageSizes(Section):
    """Training images that grow: from one size, in steps of 32 pixels, to another."""

    from_: Side = Field(
        alias="from",
        description="Side at step 0 in pixels. With two thirds of `to`, a step has a third fewer "
        "pixels on average.",
    )
    to: Side = Field(
        description="Side in the end, a multiple of 32 above `from` or the same, and at most "
        "data.image_size. One or two steps of 32 below that can evaluate better: random crops "
        "magnify what they show (Touvron et al., 2019).",
    )
    until: Share = Field(
        default=0.75,
        description="Share of all steps at which `to` is reached, in equal stretches. 0.75 leaves "
        "a quarter of the training to learn what is fine.",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> "ImageSizes":
        if self.from_ > self.to:
            raise ValueError(
                f"from {self.from_} is above to {self.to}. Images can only grow: exchange them."
            )
        if (self.to - self.from_) % SIZE_STEP:
            near = self.to - (self.to - self.from_) // SIZE_STEP * SIZE_STEP
            raise ValueError(
                f"from {self.from_} is no multiple of {SIZE_STEP} below to {self.to}, which the "
                f"images grow by. Write from {near}"
                + (f" or {near - SIZE_STEP}." if near >= 2 * SIZE_STEP else ".")
            )
        return self


class Schedule(Section):
    """How long to train, and the learning rate and the size of the images on the way."""

    name: Literal["cosine", "paper", "step", "linear"] = Field(
        default="cosine",
        description="Fall of the learning rate: cosine and linear end at 0, step is times 0.1 "
        "after each third, paper times 0.96 every 8 epochs. cosine does well at any length.",
    )
    epochs: Count = Field(
        default=90,
        description="Passes over the training images. 90 is usual for ImageNet; a small data set "
        "needs more for the same number of steps.",
    )
    warmup_epochs: NotNegative = Field(
        default=5.0,
        description="Epochs in which the rate rises linearly to optimizer.lr, at most half of "
        "schedule.epochs. 5 lets a large batch start safely.",
    )
    image_size: ImageSizes | None = Field(
        default=None,
        description="Training images that grow, such as {from: 128, to: 192, until: 0.75}: small "
        "ones make cheap steps while the network learns what is coarse. Evaluation, predict and "
        "export keep data.image_size. null trains at data.image_size throughout, as the paper "
        "does.",
    )


class Ema(Section):
    """Polyak averages of the weights, evaluated beside the weights themselves."""

    decays: Decays = Field(
        default=(0.9999,),
        description="One average a decay: the larger, the longer its memory. [] keeps none. "
        "0.9999 suits ImageNet's hundred thousand steps; a few thousand want about 0.998.",
    )
    every_steps: Count = Field(
        default=1,
        description="Steps between updates of the averages; the decay is raised to this power, so "
        "the memory stays the same. 1 is exact; more saves time on a slow machine.",
    )

"""Every key of a config file: its type, bounds, default, and the reason for the default.

The descriptions are what the program prints for a person (annotated defaults) and for an editor
(JSON Schema). Types are strict: a whole number may stand where a number is wanted, and nothing
else is converted. This module needs no torch: a wrong config is answered at once.
"""

from math import isqrt
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=32)]  # of an image that the network sees, in pixels

SIZE_STEP = 32  # pixels that growing training images grow by: one more pixel of the last maps


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if low > high:
        raise ValueError(f"the lower limit {low} is above the upper. Write [{high}, {low}].")
    return limits


def _unique(numbers: tuple[float, ...]) -> tuple[float, ...]:
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"{number} is in the list twice. Leave one out.")
    return numbers


# YAML has lists; tuples keep a Config immutable and hashable. strict=False lets the list become
# a tuple, the numbers inside stay strict.
FromList = Field(strict=False)
Triple = Annotated[tuple[float, float, float], FromList]
PositiveTriple = Annotated[tuple[Positive, Positive, Positive], FromList]
Share = Annotated[float, Field(gt=0, le=1)]
AreaLimits = Annotated[tuple[Share, Share], FromList, AfterValidator(_in_order)]
RatioLimits = Annotated[tuple[Positive, Positive], FromList, AfterValidator(_in_order)]
Decays = Annotated[tuple[BelowOne, ...], FromList, AfterValidator(_unique)]


class Section(BaseModel):
    """What all sections share: immutable, no unknown keys, no conversions, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Run(Section):
    """Where a run is kept, and its random numbers."""

    dir: Text | None = Field(
        default=None,
        description="Folder of this run. null means runs/<config name>, with -2, -3, ... where "
        "another run lives there, so that no run overwrites another.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Start of every random number: weights, order, crops, dropout. 0 is as good as "
        "any; change it to see how much of a result is chance.",
    )


class Data(Section):
    """The images, and the form in which the network sees them."""

    train: Text = Field(
        description="Images to train on: a folder of class folders, a tar shard or a folder of "
        "them, hub:NAME, or shipped:clothing/train. Required, because no guess could be right.",
    )
    val: Text | None = Field(
        default=None,
        description="Images to evaluate on, in the same forms as data.train. null holds a part of "
        "data.train out instead, see val_fraction: one folder of photos is enough to begin with.",
    )
    val_fraction: BelowOne = Field(
        default=0.2,
        description="With val: null, the share of data.train that is held out to evaluate on, "
        "chosen by the photos' contents, so that copies stay together. 0 trains on all of them, "
        "without evaluation.",
    )
    labels: Text | None = Field(
        default=None,
        description="A CSV file with the columns path and label, the path relative to data.train. "
        "null takes the class folders of data.train instead, which need no table.",
    )
    exclude: Text | None = Field(
        default=None,
        description="A CSV file with a column path, relative to data.train: photos to leave out, "
        "such as a run's quarantine.csv. null leaves out none.",
    )
    image_size: Side = Field(
        default=224,
        description="Side of the square that the network sees, in pixels. 224 is the paper's; the "
        "cost of a step grows with its square. Below 32 nothing is left after five halvings.",
    )
    workers: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto",
        description="Threads that decode images ahead of the step; 0 decodes between steps. auto "
        "fits the processor; the pixels are the same for every number.",
    )
    on_error: Literal["stop", "quarantine"] = Field(
        default="stop",
        description="At an image that cannot be read: stop and name it, or quarantine: leave it "
        "out, without a substitute, and list it in the run's quarantine.csv.",
    )
    quarantine_limit: Share = Field(
        default=0.01,
        description="Largest part of a data set that quarantine may leave out, rounded up to "
        "whole images. 0.01 forgives damaged files; a disk that has failed stops the run.",
    )
    exif_orientation: bool = Field(
        default=False,
        description="Turn photos as their EXIF tag says. Off, as everywhere in the field, so that "
        "results compare; true for photos from phones, which store portraits lying down.",
    )
    cache: Literal["none", "ram", "auto"] = Field(
        default="none",
        description="Decode each training photo once, shrink it to cache_short_side and keep its "
        "pixels in memory: ram, as many as fit in half of what is free; auto, if all do. none, "
        "since it changes the pixels a little and pays only for slow decoding.",
    )
    cache_short_side: Count | Auto = Field(
        default="auto",
        description="Short side in pixels to which cached photos are shrunk; smaller ones stay. "
        "auto is 9/7 of the side of the training images, so 288 for 224: what `data pack` does, "
        "sharp for all but the smallest crops.",
    )
    mean: Triple = Field(
        default=(0.485, 0.456, 0.406),
        description="Red, green and blue mean of pixels scaled to 0..1, subtracted. ImageNet's are "
        "close enough for any photos; torchvision's GoogLeNet weights want 0.5.",
    )
    std: PositiveTriple = Field(
        default=(0.229, 0.224, 0.225),
        description="Red, green and blue standard deviation, divided by after the mean. "
        "ImageNet's, for the same reason; torchvision's GoogLeNet weights want 0.5.",
    )


class Augment(Section):
    """How a training image is changed at random, anew in every epoch."""

    crop: Literal["random_resized", "vgg_scale_jitter"] = Field(
        default="random_resized",
        description="random_resized cuts a box of random area and shape, as the paper does; "
        "vgg_scale_jitter keeps the shape (VGG, 2014) and is there to compare with.",
    )
    scale: AreaLimits = Field(
        default=(0.08, 1.0),
        description="Share of the image's area that random_resized cuts, [lowest, highest]. 0.08 "
        "is the paper's and pays in long training; with few epochs 0.35 learns faster.",
    )
    ratio: RatioLimits = Field(
        default=(0.75, 1.3333333),
        description="Width over height of the box that random_resized cuts, [lowest, highest]. "
        "3/4 to 4/3 is the paper's.",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest", "area", "random"] = Field(
        default="bilinear",
        description="How crops are resized. bilinear is fast and what evaluation uses; random "
        "draws one of the other four each time, as the paper does.",
    )
    flip: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Probability of mirroring left to right. 0.5 suits photos; write 0 where left "
        "and right differ in meaning, as in text or road signs.",
    )
    photometric: bool = Field(
        default=False,
        description="Change brightness, contrast, colour and lighting at random, as the paper "
        "does. Off, because it costs time and short training has no use for it.",
    )
    policy: Literal["none", "randaugment", "trivialaugment"] = Field(
        default="none",
        description="Shears, shifts, turns and changes of colour: randaugment draws two of 14 "
        "operations, trivialaugment one of any strength. Both pay in long training only.",
    )
    policy_magnitude: int = Field(
        default=9,
        ge=0,
        le=30,
        description="Strength of randaugment's operations, of 30. 9 is the usual one; a small "
        "network takes less. trivialaugment draws its own.",
    )
    erase: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability that a random box of the image becomes noise. 0 is the paper's; "
        "0.1 to 0.25 is usual in training of 100 epochs and more.",
    )
    mixup: NotNegative = Field(
        default=0.0,
        description="Blend each image and its label with another's, in shares from Beta(mixup, "
        "mixup); 0 for none. 0.2 is usual; short training of a small network loses by it.",
    )
    cutmix: NotNegative = Field(
        default=0.0,
        description="Paste a box of another image over each, in shares from Beta(cutmix, cutmix); "
        "0 for none, 1 is usual. With mixup too, each image gets one of the two.",
    )


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
    dropout: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="Share of the 1,024 features dropped before the last layer. 0.4 is the "
        "paper's.",
    )
    aux_dropout: float = Field(
        default=0.7,
        ge=0,
        lt=1,
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

    aux_weight: float = Field(
        default=0.3,
        ge=0,
        description="Weight of each auxiliary head's loss beside the main one's 1. 0.3 is the "
        "paper's.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
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
    lr: float = Field(
        default=0.1,
        gt=0,
        description="Highest learning rate, used as written: it is not scaled by the batch. 0.1 is "
        "usual for a batch of 256 with batch normalisation; halve the batch, halve the rate.",
    )
    head_lr_scale: Positive = Field(
        default=1.0,
        description="Learning rate of the three classifiers, as a multiple of lr. With model.init "
        "they are often new and the rest is not: 10 lets them catch up.",
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the last update that is kept. 0.9 is the paper's.",
    )
    weight_decay: float = Field(
        default=1e-4,
        ge=0,
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


class Evaluate(Section):
    """When data.val is evaluated. The end of training always is, whatever stands here."""

    every_epochs: Count | None = Field(
        default=1,
        description="Epochs between evaluations; null for none by epochs. 1 draws a curve that "
        "shows trouble early and costs about 1 % on ImageNet.",
    )
    every_steps: Count | None = Field(
        default=None,
        description="Optimizer steps between evaluations, besides every_epochs. null for none: "
        "epochs are the better measure unless one lasts for hours.",
    )
    batch_size: Count = Field(
        default=256,
        description="Images evaluated at once on each device. It changes the speed and not the "
        "result; 256 fits wherever such a batch can be trained.",
    )
    fit: Literal["center_crop", "pad", "squash"] = Field(
        default="center_crop",
        description="How an image becomes a square: its centre; all of it with grey bars (pad); "
        "all of it, its shape lost (squash). random_resized crops match it: with the last two they "
        "have the image's own shape. center_crop is the field's; pad or squash where the edges "
        "matter.",
    )


class Checkpoint(Section):
    """When the run is saved. Its last step always is."""

    every_steps: Count | None = Field(
        default=None,
        description="Optimizer steps between checkpoints. null for none by steps: minutes say "
        "better what a crash may cost.",
    )
    every_minutes: Positive | None = Field(
        default=15.0,
        description="Minutes between checkpoints, so the most that a crash can cost. At 15 the "
        "writing itself does not matter; null for none by time.",
    )
    every_epochs: Count | None = Field(
        default=1,
        description="Epochs between checkpoints; null for none by epochs. With 1 every evaluated "
        "epoch can be the best one that is kept.",
    )
    keep: int = Field(
        default=3,
        ge=2,
        description="Newest checkpoints kept besides the best one. At least 2, so that a damaged "
        "file never costs the run; 3 leaves one to spare.",
    )


class Device(Section):
    """What to compute on, and how exactly."""

    kind: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="auto takes the fastest there is: cuda, then mps, then cpu. Name one to make "
        "sure of it.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Numbers used in the convolutions; weights are always fp32. auto takes bf16 "
        "where the device is good at it, which is about twice as fast, and fp16 on NVIDIA's Volta "
        "and Turing, which only have that: the loss is then scaled, as gradients need. On CUDA "
        "fp32 multiplies in TF32.",
    )
    channels_last: bool = Field(
        default=True,
        description="Keep the channels of a pixel together in memory. The same network, faster on "
        "current devices; false is there to measure the difference.",
    )
    compile: bool = Field(
        default=False,
        description="Translate the network for this device before the first step, once for each "
        "size of the images (torch.compile; needs a C++ compiler, on a GPU Triton too). false, for "
        "on a CPU it takes minutes to start and is slower then; on a GPU it may pay in a long run.",
    )
    threads: Count | Auto = Field(
        default="auto",
        description="Processor threads of one operation. auto fits the processor; another number "
        "changes the last digits of a result, so a run keeps what it began with.",
    )
    deterministic: bool = Field(
        default=False,
        description="On a GPU, use only operations that repeat to the bit, at some speed. The CPU "
        "always does.",
    )


class Distributed(Section):
    """How the ranks of one run work together; torchrun says how many there are."""

    timeout: Positive = Field(
        default=600,
        description="Seconds that a rank waits for another one before the run ends (exit code 7), "
        "naming the rank that hangs. Ten minutes outlast a slow file system; the first index of a "
        "huge data set may need more, or `googlenet-train data index` beforehand.",
    )
    sync_batchnorm: bool = Field(
        default=False,
        description="Normalise over the images of all ranks instead of each rank's own. It costs "
        "one more exchange a layer and pays below some 16 images a rank; GPUs only.",
    )


class Log(Section):
    """What is written while training."""

    every_steps: Count = Field(
        default=50,
        description="Steps between lines in the log, each the mean since the last. 50 shows "
        "progress without making the device wait.",
    )


class Config(Section):
    """A training run of googlenet-train, complete: the same file gives the same run."""

    run: Run = Field(default_factory=Run)
    data: Data
    augment: Augment = Field(default_factory=Augment)
    model: Model = Field(default_factory=Model)
    loss: Loss = Field(default_factory=Loss)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    ema: Ema = Field(default_factory=Ema)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    device: Device = Field(default_factory=Device)
    distributed: Distributed = Field(default_factory=Distributed)
    log: Log = Field(default_factory=Log)

    @property
    def parts(self) -> int:
        """optimizer.accumulate; 1 while that is auto, for no other may be needed."""
        parts = self.optimizer.accumulate
        return 1 if parts == "auto" else parts

    @property
    def largest_side(self) -> int:
        """Side in pixels of the largest images that are trained on."""
        growing = self.schedule.image_size
        return self.data.image_size if growing is None else growing.to

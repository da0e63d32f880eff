"""Settings of the images: where they are, how they are read, and how they are changed."""

from typing import Annotated, Literal

from pydantic import Field

from googlenet_train.config.types import (
    AreaLimits,
    Auto,
    BelowOne,
    Count,
    NotNegative,
    PositiveTriple,
    Probability,
    RatioLimits,
    Section,
    Share,
    Side,
    Text,
    Triple,
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
    flip: Probability = Field(
        default=0.5,
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
    erase: Probability = Field(
        default=0.0,
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

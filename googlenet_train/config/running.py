"""Settings of how a run goes: where, on what, and when it evaluates, saves and logs."""

from typing import Literal

from pydantic import Field

from googlenet_train.config.types import (
    Auto,
    Count,
    Positive,
    Section,
    Text,
)


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
        "where that is faster (a CPU is asked by a trial of a tenth of a second), and fp16 on "
        "NVIDIA's Volta and Turing, which only have that: the loss is then scaled, as gradients "
        "need. On CUDA fp32 multiplies in TF32.",
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
        "one more exchange a layer, for which the host waits, and pays below some 16 images a "
        "rank; GPUs only. Where data.on_error: quarantine leaves a rank without an image in some "
        "part of a step, two black ones are normalised with the others'.",
    )


class Log(Section):
    """What is written while training."""

    every_steps: Count = Field(
        default=50,
        description="Steps between lines in the log, each the mean since the last. 50 shows "
        "progress without making the device wait.",
    )

"""A config, whole: every key, its type, bounds, default, and the reason for the default.

The descriptions are what the program prints for a person (annotated defaults) and for an editor
(JSON Schema). Nothing here needs torch: a wrong config is answered at once.
"""

from pydantic import Field

from googlenet_train.config.images import Augment, Data
from googlenet_train.config.learning import Ema, Loss, Model, Optimizer, Schedule
from googlenet_train.config.running import Checkpoint, Device, Distributed, Evaluate, Log, Run
from googlenet_train.config.types import Section


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

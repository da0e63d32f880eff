"""Everything between the command line and torch: whatever can be wrong without it is found here."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from googlenet_train import distributed
from googlenet_train.config import Config
from googlenet_train.config import file as config_file
from googlenet_train.config import text as config_text
from googlenet_train.data import order, sizes
from googlenet_train.data.balance import balanced_weights, class_warnings
from googlenet_train.data.index import Index
from googlenet_train.data.names import printable
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import leaks, refusals, runs, sources
from googlenet_train.run.sources import Sources
from googlenet_train.version import __version__

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """A run that may start: its settings, images and folder."""

    config: Config
    sources: Sources
    folder: Path
    resume: bool

    @property
    def train(self) -> Index:
        return self.sources.train

    @property
    def val(self) -> Index | None:
        return self.sources.val

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(len(self.train), self.config.optimizer.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.schedule.epochs

    def image_size(self, step: int) -> int:
        """Side in pixels of the training images of a step."""
        return sizes.image_size_at(step, self.total_steps, self._growth())

    def image_sizes(self) -> Sequence[tuple[int, int]]:
        """(first step, side) of each stretch of steps whose training images have one size."""
        return sizes.stretches(self.total_steps, self._growth())

    def pixels(self, first: int, after: int) -> int:
        """Those of one training image of each of the steps first..after-1: a measure of work."""
        return sizes.pixels(first, after, self.total_steps, self._growth())

    def _growth(self) -> sizes.Growth:
        growing, side = self.config.schedule.image_size, self.config.data.image_size
        if growing is None:
            return sizes.Growth(side, side, until=1)
        return sizes.Growth(growing.from_, growing.to, growing.until)

    def class_weights(self) -> list[float] | None:
        """A weight for each class, where the loss is weighted; the config names some of them."""
        stated = self.config.loss.class_weights
        if not isinstance(stated, dict):
            return None
        called = zip(self.train.classes, self.sources.names, strict=True)
        return [stated.get(name, stated.get(folder, 1.0)) for folder, name in called]


def prepare(
    loaded: config_file.Loaded, *, resume: bool, fresh: bool, allow: Sequence[str]
) -> Launch | None:
    """Choose the run folder, open the data, make the folder; None where a resumed run is finished.

    Raises UserError for everything that would keep the run from starting.
    """
    planned = plan(loaded, resume=resume, fresh=fresh, allow=allow)
    if planned is None:
        return None
    launch, run = planned
    weighted = launch.config.loss.class_weights is not None
    for note in launch.sources.notes:
        say(printable(note))
    warnings = class_warnings(launch.train, launch.val, launch.sources.names, weighted=weighted)
    for warning in warnings + _about_val(launch):
        say(f"warning  {warning}")
    if run.aside:
        say(f"fresh    the old run is now {run.aside}")
    runs.make(run)
    return launch


def plan(
    loaded: config_file.Loaded, *, resume: bool, fresh: bool, allow: Sequence[str]
) -> tuple[Launch, runs.RunFolder] | None:
    """As `prepare`, but nothing is changed on the disk."""
    config = refusals.with_published(loaded)
    shipped = ", shipped with the package" if loaded.shipped else ""
    say(f"googlenet-train {__version__}")
    say(f"config   {loaded.path if not loaded.shipped else loaded.path.name}{shipped}")
    if loaded.called:  # a bare folder was given: these settings nobody has seen
        say(config_text.essentials(config).rstrip())
    if distributed.world_size() > 1:
        here = distributed.local_world_size()
        say(f"ranks    {distributed.world_size()}, {here} of them on this machine")

    refusals.check_keys(allow)
    run = runs.choose(config, loaded.name, resume=resume, fresh=fresh)
    say(f"run      {run.folder}" + (f" ({run.note})" if run.note else ""))

    opened = sources.open_sources(config.data, partial(at, loaded))
    left_out = sources.about_left_out(config.data, opened)
    opened = opened._replace(notes=left_out + opened.notes)
    train = opened.train
    refusals.check_outside(run.folder, opened)
    refusals.check_image_size(loaded)
    refusals.check_batch(loaded, config, len(train))
    refusals.check_class_count(loaded, config.model.num_classes, train)
    refusals.check_class_weights(loaded, opened)

    before = runs.progress(run.folder, verified=True) if resume else None
    if before:
        config = refusals.continued(run.folder, config, allow)
        refusals.check_batch(loaded, config, len(train))  # with what was auto at step 0
    elif config.model.init not in (None, "torchvision"):
        refusals.check_init(loaded, config.model.init)
        opened = opened._replace(notes=opened.notes + leaks.seen_by_init(config.model.init, opened))
    settled: dict[str, object] = {
        "model.num_classes": len(train.classes),
        "data.workers": _workers(config.data.workers),
    }
    if config.loss.class_weights == "auto":
        balanced = balanced_weights(train.counts())
        settled["loss.class_weights"] = dict(zip(train.classes, balanced, strict=True))
    config = config_text.resolved(config, settled)
    launch = Launch(config, opened, run.folder, before is not None)
    if before:
        refusals.check_same_data(loaded, run.folder, before, opened)
        if before.info and before.step >= launch.total_steps and before.evaluated:
            say(
                f"finished at step {before.step:,} already; nothing to do. "
                "A larger schedule.epochs would go on."
            )
            return None
    elif resume:
        say(f"resume   no checkpoint yet in {run.folder}: starting at step 0")
    return launch, run


def _about_val(launch: Launch) -> list[str]:
    if launch.val is None or launch.sources.split or launch.resume:
        return []
    if len(launch.train) + len(launch.val) > sources.MOST_FILES:  # `check` looks
        return []
    data = launch.config.data
    try:
        found = leaks.across(launch.train, launch.val, (data.train, str(data.val)))
    except UserError:  # one cannot be read, about which the run does what data.on_error says
        return []
    return [leaks.told(found, len(launch.val))] if isinstance(found, leaks.Copies) else []


def prepare_ranks(
    loaded: config_file.Loaded, *, resume: bool, fresh: bool, allow: Sequence[str]
) -> Launch | None:
    """`prepare` for every rank: the first decides, the others open the same data.

    Raises UserError (data) where a rank's machine has other images.
    """
    mine: list[Launch] = []

    def decide() -> tuple[Config, Path, bool, dict[str, str | None]] | None:
        launch = prepare(loaded, resume=resume, fresh=fresh, allow=allow)
        if launch is None:
            return None
        mine.append(launch)
        return launch.config, launch.folder, launch.resume, launch.sources.fingerprints()

    decided = distributed.together(decide)
    error = None
    if decided is not None and not mine:
        config, folder, resumes, fingerprints = decided
        try:
            opened = sources.open_sources(config.data, partial(at, loaded))
            mine.append(Launch(config, opened, folder, resumes))
            if mine[0].sources.fingerprints() != fingerprints:
                raise UserError(
                    f"{loaded.where('data.train')}: other images here than rank 0 has. Give every "
                    "machine the same data set.",
                    ExitCode.DATA,
                )
        except UserError as raised:
            error = raised
    distributed.raise_first(error)
    return mine[0] if mine else None


def at(loaded: config_file.Loaded, key: str, open_it: Callable[[], T]) -> T:
    """`open_it()`, its error with where `key` was written and how else it may be given."""
    try:
        return open_it()
    except UserError as error:
        end = "" if str(error).endswith("?") else "."
        mend = {
            "data.train": " Pass data.train=FOLDER, or try --config quickstart.yaml.",
            "data.val": " Pass data.val=FOLDER.",
        }.get(key, "")
        stated = config_text.flat(loaded.config)[key]
        if Path(str(stated)).expanduser().is_dir():  # it is the right one, but not in order
            mend = ""
        raise UserError(f"{loaded.where(key)}: {error}{end}{mend}", error.exit_code) from None


def _workers(stated: int | str) -> int:
    if isinstance(stated, int):
        return stated
    # The threads only decode; beyond 16 a GPU that trains GoogLeNet is fed.
    return min(16, distributed.cores())


def say(line: str) -> None:
    with suppress(BrokenPipeError):  # `2>&1 | head` has seen enough; the run goes on
        print(line, file=sys.stderr, flush=True)

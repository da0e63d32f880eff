"""The verb `check`: whatever can be known of a run before its step 0. It trains nothing.

It plans the run as training does, looks at a sample of the images, and takes the run's first steps
in a temporary folder. Nothing of it stays.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from googlenet_train import launch
from googlenet_train.config_file import Loaded
from googlenet_train.data.balance import class_warnings, data_summary
from googlenet_train.data.digests import copies, digests
from googlenet_train.data.folders import FolderFiles
from googlenet_train.data.index import Index
from googlenet_train.data.names import is_hidden, is_photo, printable
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.memory import gigabytes
from googlenet_train.scaling import Known

if TYPE_CHECKING:
    from googlenet_train.trial import Trial

_LISTED = 12  # classes that are shown one by one; of more only the smallest
_MOST_FILES = 200_000  # that are asked whether they are photos
_MOST_BYTES = 2_000_000_000  # that are read to compare contents, unless all are to be
# Photos of cameras that a person may take for images that are read.
_OTHER_PHOTOS = {".heic", ".heif", ".avif", ".gif", ".jfif", ".jp2", ".dng", ".nef", ".cr2", ".arw"}


class Line(NamedTuple):
    status: str  # ok, warning or problem
    what: str
    message: str
    exit_code: ExitCode = ExitCode.DONE


class Report:
    """The findings so far. Each is printed on stdout as soon as it is known, unless `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self.lines: list[Line] = []
        self._quiet = quiet

    def ok(self, what: str, message: str) -> None:
        self._add(Line("ok", what, message))

    def warning(self, what: str, message: str) -> None:
        self._add(Line("warning", what, message))

    def problem(self, what: str, message: str, exit_code: ExitCode) -> None:
        self._add(Line("problem", what, message, exit_code))

    @property
    def exit_code(self) -> ExitCode:
        """That of the first problem."""
        codes = (line.exit_code for line in self.lines if line.status == "problem")
        return next(codes, ExitCode.DONE)

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        if not self._quiet:
            print(f"{line.status:<8} {line.what:<8} {line.message}", flush=True)


def check(
    loaded: Loaded,
    *,
    resume: bool,
    everything: bool,
    as_json: bool,
    gpus: Sequence[int] = (),
    known: Known = Known(),  # noqa: B008  immutable
) -> ExitCode:
    """Print what was found, one line each; the exit code is 0 only if the run would start.

    `everything`: look at every image and compare all contents, however long it takes. `gpus`: say
    what the run would take on so many, given what is `known` of them.
    """
    began = time.monotonic()
    report, facts = Report(quiet=as_json), dict[str, Any]()
    try:
        planned = launch.plan(loaded, resume=resume, fresh=False, allow=[])
        if planned is None:
            report.ok("run", "finished already: --resume would change nothing")
        else:
            tried = _check(report, facts, planned[0], everything)
            if tried is not None and gpus:
                _look_ahead(facts, planned[0], tried, gpus, known, quiet=as_json)
    except UserError as error:
        report.problem("start", str(error), error.exit_code)
    if as_json:
        lines = [line._asdict() | {"exit_code": int(line.exit_code)} for line in report.lines]
        seconds = round(time.monotonic() - began, 1)
        starts = report.exit_code == ExitCode.DONE
        print(json.dumps({"starts": starts, "checks": lines, **facts, "seconds": seconds}))
    elif report.exit_code == ExitCode.DONE:
        print("the run would start")
    else:
        print("the run would not start, or not come far: see `problem` above")
    return report.exit_code


def _check(
    report: Report, facts: dict[str, Any], planned: launch.Launch, everything: bool
) -> "Trial | None":
    for note in planned.sources.notes:
        status, _, message = note.partition(" ")
        tell = report.warning if status == "warning" else report.ok
        tell("photos", printable(message.strip()))
    _look_at_classes(report, facts, planned)
    for key, index in (("train", planned.train), ("val", planned.val)):
        if index is not None:
            _look_at_other_files(report, key, index)
        if planned.sources.split:  # both are in one folder
            break
    _compare(report, planned, everything)
    _look_at_folder(report, planned.folder)
    print("loading PyTorch…", file=sys.stderr, flush=True)
    from googlenet_train import trial

    quarantine = planned.config.data.on_error == "quarantine"
    limit = planned.config.data.quarantine_limit
    for key, index in (("train", planned.train), ("val", planned.val)):
        if index is None:
            continue
        looked = trial.decode_some(index, int(planned.config.data.workers), everything=everything)
        _judge_unreadable(report, key, index, looked, limit if quarantine else 0)
    if report.exit_code != ExitCode.DONE:  # the steps would only meet the same again
        return None
    return _try_steps(report, facts, planned)


def _look_ahead(
    facts: dict[str, Any],
    planned: launch.Launch,
    tried: "Trial",
    gpus: Sequence[int],
    known: Known,
    *,
    quiet: bool,
) -> None:
    from googlenet_train import check_gpus

    images = planned.config.optimizer.batch_size * planned.total_steps
    rate = images / tried.training
    cluster = known.added_to(check_gpus.measured(planned, rate, tried.pause))
    facts["outlook"] = check_gpus.rows(planned, cluster, gpus)
    if quiet:
        return
    print(check_gpus.table(planned, cluster, facts["outlook"]))
    left_out = [str(n) for n in gpus if n not in {row["gpus"] for row in facts["outlook"]}]
    if left_out:
        print(
            f"left out {', '.join(left_out)}: optimizer.batch_size "
            f"{planned.config.optimizer.batch_size} does not divide by them"
        )


def _look_at_classes(report: Report, facts: dict[str, Any], planned: launch.Launch) -> None:
    train, val, names = planned.train, planned.val, planned.sources.names
    report.ok("train", data_summary(train, names))
    held_out = ", held out of data.train" if planned.sources.split else ""
    if val is None:
        report.warning("val", "none: the run would not be evaluated")
    else:
        report.ok("val", f"{data_summary(val, names)}{held_out}")
    counts = train.counts()
    evaluated = val.counts() if val is not None else np.zeros_like(counts)
    facts["classes"] = {
        folder: {"name": name, "train": int(n), "val": int(m)}
        for folder, name, n, m in zip(train.classes, names, counts, evaluated, strict=True)
    }
    order = np.argsort(counts, kind="stable").tolist()
    shown = sorted(order) if len(order) <= _LISTED else order[:_LISTED]
    width = max(len(names[i]) for i in shown)
    for i in shown:
        report.ok("class", f"{names[i]:<{width}} {counts[i]:>7,} train {evaluated[i]:>7,} val")
    if len(order) > _LISTED:
        report.ok("class", f"these {_LISTED} are the smallest of {len(order):,}")
    weighted = planned.config.loss.class_weights is not None
    for message in class_warnings(train, names, weighted=weighted):
        report.warning("class", message)
    absent = [names[i] for i in np.flatnonzero(evaluated == 0).tolist()]
    if val is not None and absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        report.warning("val", f"no photos of {', '.join(absent[:5])}{more}")


def _look_at_other_files(report: Report, key: str, index: Index) -> None:
    """Files among the photos whose endings are not those of photos: nobody reads them."""
    if not isinstance(index.files, FolderFiles):
        return
    endings: Counter[str] = Counter()
    seen = 0
    for folder, below, files in os.walk(index.files.root):
        below[:] = [name for name in below if not is_hidden(name)]
        if Path(folder) == index.files.root:  # lists and licences are at home there
            continue
        names = (name for name in files if not is_hidden(name) and not is_photo(name))
        endings.update(Path(name).suffix.lower() or "without ending" for name in names)
        seen += len(files)
        if seen > _MOST_FILES:
            return
    if endings:
        listed = ", ".join(f"{ending} ({n})" for ending, n in endings.most_common(5))
        tell = report.warning if endings.keys() & _OTHER_PHOTOS else report.ok
        plural = "s are" if endings.total() > 1 else " is"
        tell(key, f"{endings.total():,} file{plural} not read, for the ending: {listed}")


def _compare(report: Report, planned: launch.Launch, everything: bool) -> None:
    """Copies of training photos among those to evaluate on."""
    train, val = planned.train, planned.val
    if val is None:
        return
    if planned.sources.split:
        report.ok("copies", "none on both sides: the split goes by contents")
        return
    source = str(planned.config.data.val)
    sizes = [
        np.array([stamp[0] if (stamp := index.files.stamp(i)) else -1 for i in range(len(index))])
        for index in (train, val)
    ]
    if (sizes[0] < 0).any() or (sizes[1] < 0).any():
        report.ok("copies", "not looked for: this source does not tell its photos' sizes")
        return
    # Only photos of the same size can be the same.
    places = [np.flatnonzero(np.isin(a, b)) for a, b in (sizes, sizes[::-1])]
    total = int(sum(size[place].sum() for size, place in zip(sizes, places, strict=True)))
    if total > _MOST_BYTES and not everything:
        report.ok("copies", f"not looked for: {total / 1e9:.0f} GB to read, which --all does")
        return
    chosen = [index.chosen(place) for index, place in zip((train, val), places, strict=True)]
    found = [
        digests(index, where)
        for index, where in zip(chosen, (planned.config.data.train, source), strict=True)
    ]
    border = len(chosen[0])
    both = [g for g in copies(np.concatenate(found)) if g[0] < border <= g[-1]] if total else []
    if not both:
        report.ok("copies", "no photo to evaluate on is among those to train on")
        return
    first = both[0]
    report.warning(
        "copies",
        f"{sum(i >= border for g in both for i in g):,} of the {len(val):,} photos to evaluate on "
        f"are also trained on, so results will look too good; the first is "
        f"{chosen[1].name(first[-1] - border)}, a copy of {chosen[0].name(first[0])}",
    )


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists, or `folder` itself."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _look_at_folder(report: Report, folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            report.ok("folder", f"{folder} can be written")
    except OSError as error:
        report.problem(
            "folder",
            f"the run folder {folder} cannot be made ({error.strerror}). Choose another with "
            "run.dir=FOLDER",
            ExitCode.STORAGE,
        )


def _judge_unreadable(
    report: Report, key: str, index: Index, looked: Sequence[tuple[str, str]], limit: float
) -> None:
    """`looked`: name and fault ("" for none) of the photos that were decoded.

    `limit`: the share of all that may be unreadable. A few bad ones say little of those not seen.
    """
    bad = [(name, fault) for name, fault in looked if fault]
    seen = f"{len(looked):,} of {len(index):,} photos decoded"
    if not bad:
        report.ok("photos", f"{key}: {seen}, all can be read")
        return
    shown = "; ".join(f"{name}: {fault}" for name, fault in bad[:5])
    more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    message = f"{key}: {seen}, {len(bad):,} cannot be read: {shown}{more}"
    likely = len(bad) * len(index) / len(looked) if len(bad) >= 5 else len(bad)
    if likely <= math.ceil(limit * len(index)):
        report.warning("photos", f"{message}. They will be left out (data.on_error: quarantine)")
    else:
        mend = "mend them, or list them in data.exclude"
        other = "" if limit else "; data.on_error=quarantine leaves a few out"
        report.problem("photos", f"{message}. The run would stop: {mend}{other}", ExitCode.DATA)


def _judge_memory(report: Report, facts: dict[str, Any], tried: "Trial") -> None:
    found = tried.memory
    if found is None:
        report.ok("memory", "this device does not say what it takes")
        return
    facts["memory_bytes"] = {"peak": found.peak, **found._asdict()}
    parts = f"{gigabytes(found.training)} in a training step"
    parts += f", {gigabytes(found.evaluation)} in an evaluation" if found.evaluation else ""
    if found.checkpoint:
        parts += f", {gigabytes(found.checkpoint)} for a checkpoint that is written meanwhile"
    line = f"about {gigabytes(found.peak)} GB at the peak: {parts}"
    if found.room is not None:
        line += f"; {gigabytes(found.room)} GB to be had"
        if found.peak > found.room:
            mend = "optimizer.accumulate=2 or a smaller evaluate.batch_size takes less"
            report.warning("memory", f"{line}. The run may be ended for it: {mend}")
            return
    report.ok("memory", line)


def _try_steps(report: Report, facts: dict[str, Any], planned: launch.Launch) -> "Trial":
    from googlenet_train import trial
    from googlenet_train.reporting import duration

    tried = trial.first_steps(planned)
    if tried.fitting is not None:
        report.ok("memory", tried.fitting)
    report.ok(
        "step",
        f"batch {planned.config.optimizer.batch_size} at {planned.config.largest_side} px: "
        f"{tried.step:.2f} s a step on {tried.device}",
    )
    _judge_memory(report, facts, tried)
    needed = tried.checkpoint * (planned.config.checkpoint.keep + 2)  # the best; one being written
    free = shutil.disk_usage(_existing(planned.folder)).free
    room = f"{needed / 1e9:.2f} GB for {planned.config.checkpoint.keep} checkpoints, the best one "
    room += f"and one being written; {free / 1e9:.1f} GB free"
    if free < needed:
        report.problem("disk", f"{room}. Make room, or choose another run.dir", ExitCode.STORAGE)
    else:
        report.ok("disk", room)
    seconds = tried.training + tried.evaluations * tried.evaluation
    facts |= {"seconds_to_train": round(seconds, 1), "checkpoint_bytes": tried.checkpoint}
    report.ok(
        "time",
        f"about {duration(seconds)}: {planned.total_steps:,} steps"
        + (f" and {tried.evaluations:,} evaluations" if tried.evaluations else ""),
    )
    return tried

"""What `check` does: find whatever can be known of a run before its step 0. It trains nothing.

It plans the run as training does, looks at a sample of the images, and takes the run's first steps
in a temporary folder. Nothing of it stays.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_train.checks import photos
from googlenet_train.checks.report import Report
from googlenet_train.checks.scaling import Known
from googlenet_train.config.file import Loaded
from googlenet_train.data.names import printable
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.memory import gigabytes
from googlenet_train.run import launch

if TYPE_CHECKING:
    from googlenet_train.checks.trial import Trial


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
    photos.look_at_classes(report, facts, planned)
    photos.compare(report, planned, everything)
    _look_at_folder(report, planned.folder)
    print("loading PyTorch…", file=sys.stderr, flush=True)
    from googlenet_train.checks import trial

    quarantine = planned.config.data.on_error == "quarantine"
    limit = planned.config.data.quarantine_limit
    for key, index in (("train", planned.train), ("val", planned.val)):
        if index is None:
            continue
        looked = trial.decode_some(index, int(planned.config.data.workers), everything=everything)
        photos.judge_unreadable(report, key, index, looked, limit if quarantine else 0)
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
    from googlenet_train.checks import gpus as check_gpus

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
    from googlenet_train import checkpoint
    from googlenet_train.checks import trial
    from googlenet_train.reporting import duration

    tried = trial.first_steps(planned)
    if tried.fitting is not None:
        report.ok("memory", tried.fitting)
    report.ok(
        "step",
        f"batch {planned.config.optimizer.batch_size} at {planned.config.largest_side} px: "
        f"{tried.step:.2f} s a step on {tried.device}",
    )
    if tried.slow:
        report.warning("step", tried.slow)
    _judge_memory(report, facts, tried)
    needed = checkpoint.most_on_disk(tried.checkpoint, planned.config.checkpoint.keep)
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

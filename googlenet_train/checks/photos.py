"""What `check` asks of the photos: classes, endings, copies, whether they can be read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from googlenet_train.checks.report import Report
from googlenet_train.data.balance import class_warnings, data_summary
from googlenet_train.data.index import Index
from googlenet_train.errors import ExitCode
from googlenet_train.run import leaks
from googlenet_train.run.launch import Launch

_LISTED = 12  # classes that are shown one by one; of more only the smallest


def look_at_classes(report: Report, facts: dict[str, Any], planned: Launch) -> None:
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
    for message in class_warnings(train, val, names, weighted=weighted):
        report.warning("class", message)


def compare(report: Report, planned: Launch, everything: bool) -> None:
    """Copies of training photos among those to evaluate on."""
    train, val = planned.train, planned.val
    if val is None:
        return
    if planned.sources.split:
        report.ok("copies", "none on both sides: the split goes by contents")
        return
    data = planned.config.data
    found = leaks.across(train, val, (data.train, str(data.val)), everything=everything)
    if found is None:
        report.ok("copies", "no photo to evaluate on is among those to train on")
    elif isinstance(found, leaks.Copies):
        report.warning("copies", leaks.told(found, len(val)))
    elif found.bytes:
        report.ok("copies", f"not looked for: {found.bytes / 1e9:.0f} GB to read, which --all does")
    else:
        report.ok("copies", "not looked for: this source does not tell its photos' sizes")


def judge_unreadable(
    report: Report, key: str, index: Index, looked: Sequence[tuple[str, str]], limit: float
) -> None:
    """`looked`: name and fault ("" for none) of the photos that were decoded.

    `limit`: the share of all that may be unreadable. A few bad ones say little of those not seen.
    """
    bad = [(name, fault) for name, fault in looked if fault]
    seen = f"{len(looked):,} of {len(index):,} photos looked at"
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

"""What `evaluate` does: how good a trained network is, or several together."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from googlenet_train import compiled, distributed
from googlenet_train.data.digests import digests
from googlenet_train.data.index import Index, open_source, with_classes
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Network, Setting, ensemble, evaluate, probabilities
from googlenet_train.machine import device as devices
from googlenet_train.reporting import say
from googlenet_train.run import leaks
from googlenet_train.run.quarantine import Quarantine
from googlenet_train.run.sources import open_val
from googlenet_train.run.trained import Trained, open_trained

# On a CPU with AMX compiling takes 15 s a network and gives 1.06 to 1.10 times the speed
# (docs/step.md).
COMPILE_FROM = 200_000
_WHY = {
    False: f"below {COMPILE_FROM:,} views it takes longer than it saves (--compile yes does it)",
    True: f"from {COMPILE_FROM:,} views on it saves more than it takes",
}


def evaluate_runs(
    paths: Sequence[str],
    *,
    weights: str,
    crops: int,
    source: str | None,
    which: str,
    kind: str,
    compile_it: str,
    as_json: bool,
) -> ExitCode:
    """Print top-1, top-5 and loss of one run, or of several as an ensemble."""
    choice = devices.choose(kind, "--device ")
    trained = [open_trained(path, which, choice.device) for path in paths]
    first = trained[0]
    for other in trained[1:]:
        _check_can_join(first, other)
    fit = first.config.evaluate.fit
    if crops > 1 and fit != "center_crop":
        raise UserError(
            f"--crops {crops} cuts parts out of each image, but {first.path} was trained to see it "
            f"whole (evaluate.fit: {fit}). Leave --crops out.",
            ExitCode.USAGE,
        )
    devices.prepare(choice.device, threads=devices.threads_per_rank())
    index = _open(first, source)
    if source is not None:
        index = _never_trained_on(index, source, paths)
    where = source or first.config.data.val or "data.val"
    setting = Setting.of(first.config, choice.device, views=crops)
    as_list = weights == "both"
    bare = next((t for t in trained if not t.averages), None)
    if bare is not None and weights != "raw":
        say(f"{bare.path} kept no average (ema.decays is empty): these are the raw weights")
        weights = "raw"
    kinds = ("raw", "ema") if weights == "both" else (weights,)
    compiles = compile_it == "yes"
    if compile_it == "auto":
        compiles = len(index) * crops >= COMPILE_FROM
        say(f"compile  {'yes' if compiles else 'no'}, {_WHY[compiles]}")

    def networks(compiled_for: int) -> dict[str, Network]:
        def of(kind: str) -> Network:
            each = [t.network(kind, setting.precision, compiled_for) for t in trained]
            return ensemble(each) if len(each) > 1 else each[0]

        return {kind: of(kind) for kind in kinds}

    batch = min(max(1, setting.batch_size // crops), len(index)) * crops
    chosen = networks(setting.at_once(batch) if compiles else 0)
    if compiles:
        try:
            _compile(chosen, batch, setting)
        except UserError:
            if compile_it == "yes":
                raise
            say("compile  no, nothing can be compiled here")
            chosen = networks(0)
    quarantine = Quarantine({where: index}, first.config.data.quarantine_limit)
    started = time.monotonic()
    hidden = True if distributed.rank() else None  # None: where there is no terminal
    with tqdm(total=len(index), desc="evaluating", unit="img", leave=False, disable=hidden) as bar:
        results = evaluate(
            chosen,
            index,
            setting,
            progress=bar.update,
            leave_out=lambda lost: distributed.together(lambda: quarantine.add(where, lost, 0)),
        )
    assert results is not None
    seconds = time.monotonic() - started
    rows = [
        {
            "weights": kind,
            "crops": crops,
            "top1": round(r["top1"], 4),
            "top5": round(r["top5"], 4),
            "top1_macro": round(r["top1_macro"], 4),
            "loss": r["loss"],
            "seen": r["seen"],
            "seconds": round(seconds, 3),
        }
        for kind, r in results.items()
    ]
    if distributed.rank():
        return ExitCode.DONE
    if as_json:
        json.dump(rows if as_list else rows[0], sys.stdout)
        print()
        return ExitCode.DONE
    for row in rows:
        print(
            f"{row['weights']:<4} top-1 {row['top1']:.2f} %  top-5 {row['top5']:.2f} %  "
            f"mean of classes {row['top1_macro']:.2f} %  loss {row['loss']:.4f}  "
            f"({row['seen']:,} images, {crops} crop{'s' if crops > 1 else ''})"
        )
    return ExitCode.DONE


def _compile(networks: Mapping[str, Network], count: int, setting: Setting) -> None:
    """Let the networks be compiled, on a batch of `count` images. Raises UserError (usage)."""
    size = (count, 3, setting.image_size, setting.image_size)
    images = torch.zeros(size, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with compiled.asked_for("--compile yes:", instead="leave --compile out"):
        for network in networks.values():
            probabilities(network, images, replace(setting, views=1))


def _open(trained: Trained, source: str | None) -> Index:
    """The photos of `source`, or those that the run was evaluated on."""
    try:
        index = open_source(source) if source else open_val(trained.config.data)
        if index is not None:
            index = with_classes(index, trained.classes)
    except UserError as error:
        end = "" if str(error).endswith("?") else "."
        where, mend = (f"--data {source}: ", "") if source else ("", " Pass --data FOLDER.")
        raise UserError(f"{where}{error}{end}{mend}", error.exit_code) from None
    if index is None:
        raise UserError(
            f"{trained.path} was trained without validation images. Pass --data FOLDER.",
            ExitCode.USAGE,
        )
    if source is None and trained.fingerprints.get("data.val") != index.fingerprint():
        say("note     the photos are no longer those that the run was evaluated on")
    return index


def _never_trained_on(index: Index, source: str, runs: Sequence[str]) -> Index:
    """`index` without the photos that one of the runs was trained on, as far as they tell."""
    trained = frozenset[bytes]().union(*(leaks.trained_on(run) for run in runs))
    if not trained:
        return index
    seen = leaks.among(digests(index, source), trained)
    if seen.all():
        say(f"warning  every photo of {source} was trained on: the figures will look too good")
    elif seen.any():
        say(
            f"note     {source}: {int(seen.sum()):,} of its {len(index):,} photos were trained on "
            "and are left out"
        )
        return index.chosen(np.flatnonzero(~seen))
    return index


def _check_can_join(first: Trained, other: Trained) -> None:
    same = ("image_size", "mean", "std")
    differs = [k for k in same if getattr(first.config.data, k) != getattr(other.config.data, k)]
    if first.config.evaluate.fit != other.config.evaluate.fit:
        differs.append("evaluate.fit")
    if first.classes != other.classes:
        differs.append("classes")
    if differs:
        raise UserError(
            f"{other.path} cannot join {first.path} in an ensemble: they differ in "
            f"{', '.join(differs)}. Evaluate them one by one.",
            ExitCode.USAGE,
        )

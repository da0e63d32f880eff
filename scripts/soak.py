"""Kill training at random instants, resume it, and compare the end with a run that was left alone.

    python scripts/soak.py [--kills 1000] [--real 30] [--calls N] [--seed 0] [--out soak.jsonl]

`--kills`: of a narrow network (an eighth of the channels), so that a run takes a second: this
process imports PyTorch once and forks a child for each start, which runs the real command line in
it. `--real`: of `python -m googlenet_train` itself, a process of its own each, with the network at
its full width, killed once it has begun to train. Every kill is a SIGKILL, at an instant drawn from
(seed, number of the run, number of the kill); a run is killed up to ten times, each time resumed by
the same command, then left to end. `--calls`: the narrow network again, killed at the first,
second, ... call of one save (all of it: log, checkpoint, best.json, pruning), before it or halfway
through it (see killing.py); by default as many times as there are. What must hold:

- after each kill the newest checkpoint verifies, and is no older than the one before the kill;
- no start ends but by our kill or with exit code 0;
- the last checkpoint has the bits of that of the uninterrupted run: weights, momentum, averages,
  sums; its metadata and all that is in metrics.jsonl are the same, times and rates excepted.

Each run is one line of the file `--out`, so a soak that was itself stopped goes on by the same
command. Exit code 1 where anything did not hold.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import killing
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import googlenet_train.train  # noqa: F401  so that no fork has to
from googlenet_train import checkpoint, cli
from googlenet_train.errors import UserError
from googlenet_train.model import googlenet
from googlenet_train.run import milestones, runs
from googlenet_train.version import __version__

KILLS_A_RUN = 10
NARROWER = 8  # divides all of the network's numbers of channels
# Differ between two runs without harm: a time, and where the run lies.
_FREE = {"seconds"}
_RATES = {"train/images_per_second", "train/data_wait"}
_CONFIG = """\
data: {train: train, val: val, image_size: 32, workers: 1}
optimizer: {batch_size: 4, lr: 0.02, clip_norm: 5.0}
schedule: {epochs: 2, warmup_epochs: 1}
ema: {decays: [0.9], every_steps: 2}
checkpoint: {every_steps: 3, keep: 2}
log: {every_steps: 3}
device: {kind: cpu, precision: fp32, threads: 1}
"""


class Start(NamedTuple):
    """One start of a run. `code`: the exit code, negative for a signal."""

    code: int
    seconds: float
    error: str


def narrow() -> None:
    """From now on this process, and what it forks, builds the network with fewer channels."""
    begin = googlenet.BasicConv2d.__init__

    def thin(self: googlenet.BasicConv2d, inputs: int, outputs: int, **rest: Any) -> None:
        begin(self, inputs if inputs == 3 else inputs // NARROWER, outputs // NARROWER, **rest)

    class Linear(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            outputs = outputs // NARROWER if outputs == 1024 else outputs
            super().__init__(inputs // NARROWER, outputs)

    class Narrow:
        def __getattr__(self, name: str) -> Any:
            return Linear if name == "Linear" else getattr(nn, name)

    vars(googlenet)["nn"] = Narrow()
    setattr(googlenet.BasicConv2d, "__init__", thin)  # noqa: B010


def draw_photos(root: Path) -> None:
    """16 noisy photos to train on and 4 to evaluate on, of two classes, and soak.yaml."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, light in (("dark", 40), ("light", 170)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(light, light + 80, (36, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    (root / "soak.yaml").write_text(_CONFIG)


def words(folder: str) -> list[str]:
    return ["--config", "soak.yaml", f"run.dir={folder}", "--resume"]


def start_narrow(
    root: Path, folder: str, kill_after: float | None, prepare: Callable[[], object] = int
) -> Start:
    """The command line in a fork of this process, which has imported everything already.

    `prepare` is called in it first.
    """
    log = root / "stderr"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(root)
            prepare()
            code = cli.main(words(folder))
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # it is ours until it is waited for
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    return Start(os.waitstatus_to_exitcode(status), seconds, log.read_text(errors="replace"))


def start_real(root: Path, folder: str, kill_after: float | None) -> Start:
    """`python -m googlenet_train` in a process of its own.

    Importing PyTorch takes most of a start: the time to the kill begins after it, at the line that
    says on which device the run trains.
    """
    began, log = time.monotonic(), root / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "googlenet_train", *words(folder)], cwd=root, stderr=stderr
        )
    while process.poll() is None and b"\ndevice " not in log.read_bytes():
        time.sleep(0.005)
    trains = time.monotonic()
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    error = log.read_text(errors="replace")
    # So that the usual time, too, is that from there on.
    seconds = time.monotonic() - (trains if kill_after is None else began)
    return Start(process.returncode, seconds, error)


KINDS = {"narrow": start_narrow, "real": start_real}
SAVE = 2  # the save whose calls are killed: it has older ones to keep and to prune


def die_in_a_save(number: int, how: str, names: Path | None = None) -> None:
    """From now on: SIGKILL at call `number` of this process' save number SAVE.

    With `names`, its calls are listed in that file, and with number 0 nothing else happens.
    """
    commit = milestones._commit
    saves: list[int] = []

    def counted(*given: Any, **named: Any) -> None:
        saves.append(1)
        if len(saves) != SAVE:
            commit(*given, **named)
            return
        made = killing.arm(number, how)
        commit(*given, **named)
        if names is not None:
            names.write_text(json.dumps(made))

    milestones._commit = counted


def state(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bits of a run's last checkpoint, and what it and the log say beside them."""
    path = checkpoint.checkpoints(folder / runs.CHECKPOINTS)[-1]
    info = {k: v for k, v in checkpoint.verify(path).items() if k not in _FREE}
    info["config"]["run"].pop("dir")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    info["log"] = [{k: v for k, v in line.items() if k not in _RATES} for line in lines]
    info["step"] = checkpoint.step_of(path)
    with safe_open(path, "pt") as file:
        bits = {
            name: file.get_tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name in file.keys()  # noqa: SIM118  it is no mapping
        }
    return bits, info


def differences(one: Path, other: Path) -> list[str]:
    """Names of what is not the same at the end of two runs."""
    names = []
    for a, b in zip(state(one), state(other), strict=True):
        names += sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return names


def newest(folder: Path) -> tuple[int, list[str]]:
    """The newest step that verifies, 0 for none; the checkpoints that do not."""
    try:
        found, bad = checkpoint.newest(folder / runs.CHECKPOINTS)
    except UserError as error:
        return 0, [str(error)]
    return (found.step if found else 0), bad


def one_run(root: Path, kind: str, number: int, seed: int, usual: float, steps: int) -> Any:
    """Start, kill and resume one run until it ends, and compare its end; a line for the file."""
    folder = root / f"{kind}-{number}"
    kills: list[dict[str, Any]] = []
    wrong: list[str] = []
    began, step = time.monotonic(), 0
    while True:
        delay = None
        if len(kills) < KILLS_A_RUN:
            chance = random.Random(f"{seed} {kind} {number} {len(kills)}")
            # Any instant of what is left can be hit, and the start of it is never too short.
            delay = chance.random() * usual * max(0.3, 1 - step / steps)
        start = KINDS[kind](root, folder.name, delay)
        before = step
        step, bad = newest(folder)
        wrong += bad
        if step < before:
            wrong.append(f"step {before} was committed, and {step} is the newest left")
        if start.code == 0:
            break
        if start.code != -signal.SIGKILL:
            wrong.append(f"exit code {start.code}: {start.error[-2000:]}")
            break
        kills.append(
            {
                "after": round(start.seconds, 3),
                "step": step,
                "within_a_save": any(folder.rglob("*.partial")),
            }
        )
    unequal = [] if wrong else differences(root / f"{kind}-whole", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "kind": kind,
        "run": number,
        "kills": kills,
        "wrong": wrong,
        "unequal": unequal,
        "seconds": round(time.monotonic() - began, 2),
    }


def killed_at_calls(root: Path, number: int, names: Sequence[str]) -> Any:
    """Kill one run at its `number`-th instant within a save, resume it, and compare its end."""
    call, how = instants(names)[number]
    folder = root / f"calls-{number}"
    began, wrong = time.monotonic(), []
    start = start_narrow(root, folder.name, None, lambda: die_in_a_save(call, how))
    step, bad = newest(folder)
    wrong += bad
    if start.code != -signal.SIGKILL or step == 0:
        wrong.append(f"exit code {start.code}, step {step}: {start.error[-2000:]}")
    kill = {"at": f"{how} {names[call - 1]}, call {call} of {len(names)}", "step": step}
    kill["within_a_save"] = True
    end = start_narrow(root, folder.name, None)
    if end.code != 0:
        wrong.append(f"exit code {end.code}: {end.error[-2000:]}")
    unequal = [] if wrong else differences(root / "narrow-whole", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "kind": "calls",
        "run": number,
        "kills": [kill],
        "wrong": wrong,
        "unequal": unequal,
        "seconds": round(time.monotonic() - began, 2),
    }


def instants(names: Sequence[str]) -> list[tuple[int, str]]:
    """(call, how) of each: after a call is before the next, but for the last."""
    found = []
    for call, name in enumerate(names, 1):
        found += [(call, "before")] + [(call, "within")] * (name == "write")
    return [*found, (len(names), "after")]


def calls_of_a_save(root: Path) -> list[str]:
    file = root / "calls.json"
    start = start_narrow(root, "calls", None, lambda: die_in_a_save(0, "never", file))
    if start.code != 0:
        sys.exit(f"the uninterrupted run failed:\n{start.error}")
    names: list[str] = json.loads(file.read_text())
    return names


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of earlier runs of this soak; a last one that is torn is cut."""
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n")
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole)
    first, *lines = [json.loads(line) for line in whole.splitlines()]
    if first != settings:
        sys.exit(f"{path} was begun with other settings ({first}). Remove it, or pass --out.")
    return lines


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind in (*KINDS, "calls"):
        mine = [line for line in lines if line["kind"] == kind]
        kills = [kill for line in mine for kill in line["kills"]]
        result[kind] = {
            "kills": len(kills),
            "within_a_save": sum(kill["within_a_save"] for kill in kills),
            "before_the_first_checkpoint": sum(kill["step"] == 0 for kill in kills),
            "runs": len(mine),
            "lost": sum(bool(line["wrong"]) for line in mine),
            "other_bits": sum(bool(line["unequal"]) for line in mine),
            "seconds": round(sum(line["seconds"] for line in mine)),
        }
    return result


def soak(root: Path, out: Path, wanted: dict[str, int], seed: int) -> dict[str, Any]:
    settings = {
        "seed": seed,
        "kills_a_run": KILLS_A_RUN,
        "version": __version__,
        "torch": torch.__version__,
        "config": _CONFIG,
    }
    lines = read(out, settings)
    narrow()
    draw_photos(root)

    def done(kind: str) -> int:
        return sum(len(line["kills"]) for line in lines if line["kind"] == kind)

    def note(line: dict[str, Any]) -> None:
        lines.append(line)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        kind, number = line["kind"], line["run"]
        if line["wrong"] or line["unequal"] or number % 25 == 0 or kind == "real":
            print(f"{kind}: {done(kind)} kills, {json.dumps(line)[:300]}", file=sys.stderr)

    whole: dict[str, Start] = {}
    for kind, start in KINDS.items():
        if done(kind) < wanted[kind] or (kind == "narrow" and wanted["calls"] != 0):
            whole[kind] = start(root, f"{kind}-whole", None)
            if whole[kind].code != 0:
                sys.exit(f"the uninterrupted run failed:\n{whole[kind].error}")
        while done(kind) < wanted[kind]:
            steps = newest(root / f"{kind}-whole")[0]
            number = sum(line["kind"] == kind for line in lines)
            note(one_run(root, kind, number, seed, whole[kind].seconds, steps))
    if wanted["calls"] != 0:
        names = calls_of_a_save(root)
        end = len(instants(names))
        end = end if wanted["calls"] < 0 else min(end, wanted["calls"])
        for number in range(done("calls"), end):
            note(killed_at_calls(root, number, names))
    return summary(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--real", type=int, default=30)
    parser.add_argument("--calls", type=int, default=-1, help="default: every call of a save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"))
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        wanted = {"narrow": given.kills, "real": given.real, "calls": given.calls}
        result = soak(Path(root), given.out, wanted, given.seed)
    for kind, counts in result.items():
        print(f"{kind}: " + ", ".join(f"{k} {v}" for k, v in counts.items()), file=sys.stderr)
    if given.json:
        print(json.dumps(result))
    return int(any(counts["lost"] or counts["other_bits"] for counts in result.values()))


if __name__ == "__main__":
    sys.exit(main())

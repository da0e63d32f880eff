"""Time the pause that a checkpoint puts into training, against a plain torch.save in the loop.

    python scripts/benchmark_checkpoint.py [--device cpu] [--rounds 7] [--json]

The state is that of ImageNet training: 13.4 million parameters with heads, as many numbers of
momentum, and one average. Ours copies it to the host, and another thread hashes, writes and syncs
it, then reads it back and verifies it. `torch.save` pickles it into a file and returns when the
system has it in its cache, as trainers commonly do; with `fsync` it is on the disk, as ours is. All
take turns in each round; times are medians, in ms.

- `ours`: the copy, all that training waits for.
- `ours_dragging`: how much longer the steps of a small network took while the other thread worked,
  over the same number of steps without it: what a save costs beside its pause.
  Free cores hide it; where others use them it is larger than the pause and can cost more than
  `torch_save`, which neither hashes nor verifies.
- `ours_in_all`: both together, the figure to compare.
- `ours_until_safe`: from the copy's end until the checkpoint is committed.
- `torch_save`, `torch_save_fsync`: the whole of it, for training waits for all.

The shares, in percent, are of a run that saves every 15 minutes, or every epoch of ImageNet at
2,500 images a second (512 s).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from googlenet_train import checkpoint, ema, optim
from googlenet_train.machine.background import Background
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.run.milestones import refuse_poisoned
from googlenet_train.run.state import copied

_EPOCH = 1_281_167 / 2_500  # seconds


class Training:
    """What a checkpoint of a run holds, on the device, and a small network that trains beside."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        model = GoogLeNet(1000).to(memory_format=torch.channels_last).to(device)
        self.model = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        optimizer = optim.build_sgd(
            model, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=device.type != "mps"
        )
        names = {id(p): name for name, p in model.named_parameters()}
        self.momentum = {
            names[id(p)]: slot["momentum_buffer"] for p, slot in optimizer.state.items()
        }
        self.average = ema.start(self.model)
        self._other = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
        self._input = torch.randn(64, 256, device=device)

    def steps(self, count: int) -> float:
        """Seconds of so many small steps: many calls from Python, as in training."""
        began = time.perf_counter()
        for _ in range(count):
            self._other(self._input).sum().backward()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def copy(self, step: int) -> checkpoint.TrainState:
        return checkpoint.TrainState(
            step,
            copied(self.model),
            copied(self.momentum),
            {"0.9999": copied(self.average)},
            info={"classes": [f"n{i:08d}" for i in range(1000)]},
        )


def timed(training: Training, work: Callable[[], Any]) -> tuple[float, Any]:
    training.wait()
    began = time.perf_counter()
    result = work()
    training.wait()
    return 1000 * (time.perf_counter() - began), result


def one_round(
    training: Training, background: Background, folder: Path, step: int
) -> dict[str, float]:
    times: dict[str, float] = {}

    alone = training.steps(500) / 500
    times["ours"], state = timed(training, lambda: training.copy(step))
    began, dragged = time.perf_counter(), 0.0
    committed: list[float] = []
    done: list[bool] = []

    def save() -> None:  # all that the thread does in a run
        refuse_poisoned(state)
        path = checkpoint.save(folder, state)
        committed.append(time.perf_counter())
        checkpoint.verify(path)
        done.append(True)

    background.start(save)
    while not done:
        dragged += training.steps(20) - 20 * alone
    background.wait()
    times["ours_dragging"] = 1000 * dragged
    times["ours_until_safe"] = 1000 * (committed[0] - began)
    times["ours_in_all"] = times["ours"] + times["ours_dragging"]

    content = {"model": training.model, "momentum": training.momentum, "ema": training.average}
    path = folder / "plain.pt"
    times["torch_save"], _ = timed(training, lambda: torch.save(content, path))
    path.unlink()

    def save_and_sync() -> None:
        with path.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

    times["torch_save_fsync"], _ = timed(training, save_and_sync)
    path.unlink()
    checkpoint.checkpoint_path(folder, step).unlink()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write (default: a temporary one)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    given = parser.parse_args()

    training, background = Training(torch.device(given.device)), Background()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        one_round(training, background, Path(name), 0)  # memory and caches are found
        rounds = [
            one_round(training, background, Path(name), step) for step in range(1, given.rounds + 1)
        ]
    result: dict[str, float] = {
        key: round(statistics.median(times[key] for times in rounds), 2) for key in rounds[0]
    }
    for key in ("ours", "ours_in_all", "torch_save", "torch_save_fsync"):
        result[f"{key}_share_15_minutes"] = round(result[key] / 10 / (15 * 60), 5)
        result[f"{key}_share_epoch"] = round(result[key] / 10 / _EPOCH, 5)
    for key, value in result.items():
        print(f"{key:34} {value:10} {'%' if 'share' in key else 'ms'}", file=sys.stderr)
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()

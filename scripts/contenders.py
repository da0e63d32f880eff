"""Contenders in processes of their own that take turns: what the benchmarks of speed share.

A machine is busier at one moment than at another, so each round asks every contender for one turn,
the first of them a different one each time; figures are medians over the rounds. In processes of
their own none inherits the memory, the caches or the compiler of another. Between turns they wait
for a line on stdin, and take no time.

    contenders.main(__file__, __doc__, ("torchvision_fp32", "ours"), contender, batch=32)
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import IO, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from googlenet_train.machine import memory

Answer = dict[str, float]
Round = Callable[[], Answer]  # one timed turn

MATRIX = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # rows and columns; larger ones are no faster


class Results(NamedTuple):
    """What one contender answered."""

    rounds: list[Answer]

    def median(self, key: str) -> float:
        return statistics.median(answer[key] for answer in self.rounds)

    def spread(self, key: str) -> float:
        """The distance from the lowest to the highest, as a share of the median."""
        values = [answer[key] for answer in self.rounds]
        return (max(values) - min(values)) / statistics.median(values)


def main(
    script: str,
    doc: str,
    names: Sequence[str],
    contender: Callable[[str, int, int, float], Round],
    *,
    batch: int,
) -> None:
    """The command line of a benchmark whose contenders, and `peak`, are made by `contender`.

    `contender(name, size, batch, seconds)` takes turns of at least so many seconds and answers as
    `timed` does; `peak` is `matrix_product`.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="a turn takes at least so long")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        serve(lambda: contender(given.contender, given.size, given.batch, given.seconds))
        return
    command = [sys.executable, script, *sys.argv[1:], "--contender"]
    results = race({name: [*command, name] for name in (*names, "peak")}, given.rounds)
    numbers = report(results, names) | {"batch": given.batch, "rounds": given.rounds}
    if given.json:
        print(json.dumps(numbers))


def report(results: Mapping[str, Results], names: Sequence[str]) -> dict[str, Any]:
    """Print a table with the first of `names` as 1; the same as one object."""
    plain, peak = results[names[0]].median("speed"), results["peak"].median("flops")
    heads = ("ratio", 8), ("spread", 8), ("GFLOP/s", 10), ("peak", 7), ("memory", 11), ("start", 8)
    print(f"{'':<18}{'images/s':>10}" + "".join(f"{head:>{width}}" for head, width in heads))
    for name in names:
        result = results[name]
        speed, flops = result.median("speed"), result.median("flops")
        print(
            f"{name:<18}{speed:>10.2f}{speed / plain:>8.2f}{result.spread('speed'):>8.0%}"
            f"{flops / 1e9:>10.0f}{flops / peak:>7.0%}{result.median('memory') / 2**30:>8.2f} GB"
            f"{result.median('start'):>6.1f} s"
        )
    print(f"{'matrix product':<18}{peak / 1e9:>36.0f}")
    return {name: results[name].median("speed") for name in names} | {
        "spread": {name: results[name].spread("speed") for name in names},
        "peak_share": results["ours"].median("flops") / peak,
        "memory": {name: results[name].median("memory") for name in names},
        "start": {name: results[name].median("start") for name in names},
    }


def timed(
    work: Callable[[], Any], device: torch.device, seconds: float, batch: int, flops: int
) -> Round:
    """A contender that does `work`, which takes `batch` images and so many operations.

    "start" is the seconds of the first time, which compiles where anything is compiled.
    """
    begun = time.perf_counter()
    work()
    _wait(device)
    start = time.perf_counter() - begun
    if device.type == "cuda":  # what cuDNN tried is not what the work takes
        torch.cuda.reset_peak_memory_stats(device)

    def take_turn() -> Answer:
        took, times = seconds_of(work, device, at_least=seconds)
        return {
            "speed": batch * times / took,
            "flops": flops * times / took,
            "memory": peak_memory(device),
            "start": start,
        }

    return take_turn


def serve(start: Callable[[], Round]) -> None:
    """Be a contender: make ready, then take a turn for each line of stdin, until it ends.

    Whatever libraries print goes to stderr, so that stdout has our answers alone.
    """
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        take_turn = start()
        take_turn()  # warms up, and does not count
        _send(answers, {})
        for _ in sys.stdin:
            _send(answers, take_turn())


def race(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Results]:
    """Start the processes one after the other, then `rounds` times let each take its turn.

    Raises RuntimeError, naming the contender, where one ends early.
    """
    with ExitStack() as stack:
        running, results = {}, {}
        for name, command in commands.items():
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, child)
            running[name] = child
            _receive(name, child)  # that it is ready
            results[name] = Results([])
        names = list(commands)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                _send(running[name].stdin, {})
                results[name].rounds.append(_receive(name, running[name]))
    return results


def _send(stream: IO[str] | None, answer: Answer) -> None:
    assert stream is not None
    print(json.dumps(answer), file=stream, flush=True)


def _receive(name: str, child: "subprocess.Popen[str]") -> Answer:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with exit code {child.wait()}; see above")
    answer: Answer = json.loads(line)
    return answer


def _end(child: "subprocess.Popen[str]") -> None:
    """Its stdin ends, and so does it; killed if it is in the middle of something."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.stdout.close()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def matrix_product(device: torch.device, dtype: torch.dtype) -> Round:
    """A contender that multiplies square matrices: {"flops": floating-point operations a second}.

    What the device can do at best: other work is measured against its median.
    """
    size = MATRIX[device.type]
    one = torch.randn(size, size, device=device).to(dtype)
    other = torch.randn(size, size, device=device).to(dtype)

    def take_turn() -> Answer:
        seconds, times = seconds_of(lambda: one @ other, device, at_least=0.5)
        return {"flops": 2 * size**3 * times / seconds}

    return take_turn


def seconds_of(work: Callable[[], Any], device: torch.device, at_least: float) -> tuple[float, int]:
    """(seconds, how often): `work` repeated for `at_least` so many seconds.

    A GPU is waited for once a doubling, not after each.
    """
    _wait(device)
    times, block, begun = 0, 1, time.perf_counter()
    while True:
        for _ in range(block):
            work()
        _wait(device)
        times += block
        seconds = time.perf_counter() - begun
        if seconds >= at_least:
            return seconds, times
        block = max(1, min(times, round(times * (at_least / seconds - 1))))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def flops_of(work: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products in `work`.

    A multiply-add is two. On tensors of device "meta" nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(device: torch.device) -> float:
    """Most bytes that were held: of tensors on a GPU since the first work, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(memory.peak() or 0)

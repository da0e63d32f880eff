"""Nothing in a step makes the host wait for the device.

The step runs on the device "meta", whose tensors have a shape and no numbers: whoever asks for one
gets an error. What is on the host, such as the labels that classes are weighed by, is really there.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress

import pytest
import torch
from steps import StepBench
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import googlenet_train.train as training
from googlenet_train import ema, numeric, optim
from googlenet_train.data.loader import Batch
from googlenet_train.machine import device as devices
from googlenet_train.model.googlenet import GoogLeNet

WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "accumulate": {"parts": 3},
    "a part without images": {"parts": 2, "empty": True},
    "mixed": {"mixed": True},
    "clip": {"clip_norm": 1.0},
    "class weights": {"class_weights": WEIGHTS, "parts": 2, "mixed": True},
    "smoothing": {"label_smoothing": 0.1},
    "averages": {"ema_every": 2, "step": 1},
    "fp16": {"precision": "fp16", "clip_norm": 1.0, "parts": 2},
    "bf16": {"precision": "bf16"},
}


class BlockingCopies(TorchDispatchMode):
    """Raises at a copy from the host that waits for the device to be done with all before it."""

    def __torch_dispatch__(self, function, types, given=(), named=None):
        result = function(*given, **(named or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = given[0] if function is torch.ops.aten._to_copy.default else given[1]
            waits = not (named or {}).get("non_blocking", len(given) > 2 and given[2])
            if source.device != result.device and waits:
                raise RuntimeError(f"a copy to {result.device} that waits")
        return result


class NewTensors(TorchFunctionMode):
    """Raises where numbers of the host become a tensor of the device: that is such a copy too."""

    def __torch_function__(self, function, types, given=(), named=None):
        result = function(*given, **(named or {}))
        if function in (torch.tensor, torch.as_tensor) and result.device.type != "cpu":
            raise RuntimeError(f"a copy to {result.device} that waits")
        return result


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Bench(StepBench):
    """Of a network on `device`."""

    def __init__(
        self,
        device: torch.device,
        fused: bool,
        precision: str = "fp32",
        network: Callable[[], nn.Module] = small,
    ) -> None:
        torch.manual_seed(0)
        with device:
            model = network()
        super().__init__(
            model, lr=0.01, precision=precision, limit=1, fused=fused, decays=(0.9, 0.99)
        )

    def step(
        self, parts: int = 1, mixed: bool = False, empty: bool = False, **settings: object
    ) -> None:
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        labels = torch.tensor([0, 2])
        batch = Batch(images, labels, (labels.flip(0), torch.rand(2)) if mixed else None)
        batches = [batch] * parts
        if empty:
            batches[0] = Batch(images[:0], labels[:0])
        self.take(batches, **settings)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    device = torch.device("meta")
    monkeypatch.setattr(devices, "autocast", lambda *_: nullcontext())  # it has none
    return device


def watched_step(
    device: torch.device, case: dict[str, object], network: Callable[[], nn.Module] = small
) -> None:
    settings = dict(case)
    bench = Bench(device, False, str(settings.pop("precision", "fp32")), network)
    with suppress(RuntimeError, NotImplementedError, TypeError):
        bench.step(**settings)  # constants travel once
    with BlockingCopies(), NewTensors():
        bench.step(**settings)


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(meta, name):
    watched_step(meta, CASES[name])


def test_nor_does_the_network(meta):
    watched_step(meta, {}, lambda: GoogLeNet(3))


# --- that the check can fail ---------------------------------------------------------------------


def before(module: object, name: str, asks: Callable[..., object]) -> tuple[object, str, Callable]:
    """`module.name`, but `asks` comes first, with the same arguments."""
    real = getattr(module, name)

    def asking(*given, **named):
        asks(*given, **named)
        return real(*given, **named)

    return module, name, asking


def waiting_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    if not bad:
        optimizer.step()


def tensors_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


WAITS: dict[str, tuple[object, str, Callable]] = {
    "item": before(numeric, "judge", lambda guard, window, sums, step: sums[3].item()),
    "float": before(numeric, "settle", lambda guard, old, bad, share: float(bad)),
    "bool": (optim, "masked_step", waiting_step),
    "tolist": before(numeric, "judge", lambda guard, *_: guard.counts.tolist()),
    "cpu": before(ema, "update", lambda average, live, d, bad: bad.cpu()),
    "numpy": before(numeric, "snapshot", lambda guard: guard.counts.numpy()),
    "nonzero": before(numeric, "judge", lambda guard, window, *_: window.nonzero()),
    "masked": before(numeric, "judge", lambda guard, window, *_: window[window > 0]),
    "copy": before(training, "to_device", lambda images, device, *_: WEIGHTS.to(device)),
    "copy into": before(numeric, "judge", lambda guard, *_: guard.values[:3].copy_(WEIGHTS)),
    "new": before(numeric, "judge", lambda guard, *_: torch.tensor([1], device="meta")),
}


@pytest.mark.parametrize("how", WAITS)
def test_whoever_waits_is_noticed(meta, monkeypatch, how):
    monkeypatch.setattr(*WAITS[how])
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        watched_step(meta, {})


# --- the fused optimizer, which the device "meta" has not ----------------------------------------


class Numbers(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        asks = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += function in asks
        return function(*given, **(named or {}))


@pytest.mark.parametrize(("name", "asked"), [("fp16", 0), ("class weights", 2)])
def test_on_the_cpu_only_the_hosts_own_labels_are_read(monkeypatch, name, asked):
    """Weights of classes are summed where the labels are: once for each part of the batch."""
    monkeypatch.setattr(devices, "autocast", lambda *_: nullcontext())  # float16 takes seconds here
    settings = dict(CASES[name])
    bench = Bench(torch.device("cpu"), True, str(settings.pop("precision", "fp32")))
    with Numbers() as numbers:
        bench.step(**settings)
    assert numbers.count == asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name):
    settings = dict(CASES[name])
    device = torch.device("cuda", 0)
    bench = Bench(device, True, str(settings.pop("precision", "fp32")))
    bench.step(**settings)  # what travels once
    torch.cuda.set_sync_debug_mode("error")
    try:
        bench.step(**settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")

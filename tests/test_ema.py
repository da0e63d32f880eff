"""Polyak averages of a real training, held against the formula in float64."""

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from googlenet_train import ema

UPDATES = 50
DECAYS = (0.5, 0.8, 0.9999)


def training(steps: int) -> tuple[dict[str, torch.Tensor], Iterator[int]]:
    """The tensors of a tiny network with BatchNorm, and the training of it, step by step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train() -> Iterator[int]:
        for step in range(steps):
            images, targets = torch.randn(8, 3, 6, 6) + step / steps, torch.randint(3, (8,))
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield step

    return {name: tensor.detach() for name, tensor in model.state_dict().items()}, train()


@pytest.mark.parametrize("every_steps", [1, 3])
def test_equals_the_formula(every_steps):
    live, steps = training(UPDATES * every_steps)
    averages = {decay: ema.start(live) for decay in DECAYS}
    kinds = [*DECAYS, "no ramp"]
    expected = {kind: {n: t.double() for n, t in live.items()} for kind in kinds}

    for step in steps:
        t, due = divmod(step + 1, every_steps)
        if due:
            continue
        t -= 1  # the updates made before this one
        for decay in DECAYS:
            ema.update(averages[decay], live, ema.decay_after(t, decay, every_steps))
        for kind in kinds:
            d = (0.9999 if kind == "no ramp" else min(kind, (1 + t) / (10 + t))) ** every_steps
            for name, tensor in live.items():
                expected[kind][name] = d * expected[kind][name] + (1 - d) * tensor.double()

    for decay, average in averages.items():
        assert list(average) == list(live)
        for name, tensor in average.items():
            if name == "1.num_batches_tracked":
                assert tensor.dtype == torch.int64
                assert tensor.item() == UPDATES * every_steps
            else:
                assert tensor.dtype == torch.float32
                wanted = expected[decay][name]
                torch.testing.assert_close(tensor.double(), wanted, atol=1e-6, rtol=1e-6)
    # None of the cases could stand for another one, nor the last weights for any.
    for name in ("0.weight", "4.weight", "1.running_mean", "1.running_var"):
        values = [*(expected[kind][name] for kind in kinds), live[name].double()]
        for first, second in combinations(values, 2):
            assert (first - second).abs().max() > 1e-5


def test_ramp():
    assert ema.decay_after(0, 0.9999) == pytest.approx(1 / 10)
    assert ema.decay_after(1, 0.9999) == pytest.approx(2 / 11)
    assert ema.decay_after(90, 0.9999) == pytest.approx(91 / 100)
    assert ema.decay_after(10**6, 0.9999) == 0.9999
    assert ema.decay_after(90, 0.5) == 0.5


@pytest.mark.parametrize("every_steps", [2, 5, 32])
def test_fewer_updates_keep_as_much(every_steps):
    d = ema.decay_after(10**6, 0.999, every_steps)
    assert d == pytest.approx(0.999**every_steps, rel=1e-12)
    assert ema.decay_after(0, 0.999, every_steps) == pytest.approx(0.1**every_steps)


def test_starts_as_a_float32_copy():
    live = {
        "weight": torch.randn(3).bfloat16(),
        "bias": torch.randn(3),
        "count": torch.tensor(7),
    }
    before = {name: tensor.clone() for name, tensor in live.items()}
    average = ema.start(live)
    assert list(average) == list(live)
    assert average["weight"].dtype == average["bias"].dtype == torch.float32
    assert average["count"].dtype == torch.int64
    for tensor in live.values():
        tensor.add_(1)
    for name, tensor in before.items():
        assert torch.equal(average[name], tensor.to(average[name].dtype))


def test_integers_are_copied():
    live = {"weight": torch.zeros(2), "count": torch.tensor(0)}
    average = ema.start(live)
    live["weight"].fill_(1)
    live["count"].fill_(41)
    ema.update(average, live, 0.75)
    assert average["weight"].tolist() == [0.25, 0.25]
    assert average["count"].item() == 41
    assert live["weight"].tolist() == [1, 1]


def test_parameters_that_require_gradients():
    model = nn.Linear(2, 2)
    average = ema.start(model.state_dict(keep_vars=True))
    ema.update(average, model.state_dict(keep_vars=True), 0.5)
    assert not any(tensor.requires_grad for tensor in average.values())


def random_state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(64, 3, 7, 7), (64,), (1024, 10), (1,)]
    state = {f"{n}": torch.randn(size, generator=generator) for n, size in enumerate(sizes)}
    return state | {"count": torch.tensor(2**40 + seed)}


@pytest.mark.parametrize("d", [0.1, 0.6, 0.9999])
def test_the_bits_are_those_of_lerp(d):
    average, live, good = random_state(0), random_state(1), torch.tensor(True)
    ema.update(average, live, d, ~good)
    for name, tensor in random_state(0).items():
        if name != "count":
            assert torch.equal(average[name], tensor.lerp(live[name], good * (1 - d)))
    assert torch.equal(average["count"], live["count"])


@pytest.mark.parametrize("d", [0.1, 0.6, 0.9999])
def test_what_a_gpu_computes_is_the_same(d):
    mine, theirs = (list(random_state(seed).values())[:-1] for seed in (0, 1))
    expected = [d * a.double() + (1 - d) * b.double() for a, b in zip(mine, theirs, strict=True)]
    before = [tensor.clone() for tensor in mine]
    ema._approach(mine, theirs, torch.tensor(False) * (1 - d))
    assert all(torch.equal(*pair) for pair in zip(mine, before, strict=True))
    ema._approach(mine, theirs, torch.tensor(True) * (1 - d))
    for tensor, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(tensor.double(), wanted, atol=1e-6, rtol=1e-6)


def test_a_gpu_is_asked_once_for_all_tensors():
    """And not once for each of them, as on the CPU, where asking costs next to nothing."""

    asked: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), named=None):
            asked.append(function.__name__)
            return function(*given, **(named or {}))

    tensors = {f"{n}": torch.zeros(3, device="meta") for n in range(100)}
    tensors["count"] = torch.zeros((), dtype=torch.int64, device="meta")
    average, bad = ema.start(tensors), torch.tensor(False, device="meta")
    with Calls():
        ema.update(average, tensors, 0.9, bad)
    assert len(asked) < 20
    assert not any("lerp" in name for name in asked)  # with a share each it is asked for each

"""SGD by hand, and each schedule against PyTorch's own scheduler and against its formula."""

import math
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.optim import build_sgd, learning_rate

SCHEDULES = ["cosine", "linear", "step", "paper"]


# --- the optimizer -------------------------------------------------------------------------------


def test_weight_decay_spares_batchnorm_and_biases():
    model = GoogLeNet(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    build_sgd(model, lr=0.1, momentum=0.9, weight_decay=0.5, fused=False).step()

    decayed, spared = set(), set()
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(owner, recurse=False):
            is_weight = isinstance(module, nn.Conv2d | nn.Linear) and name.endswith("weight")
            (decayed if is_weight else spared).add(name)
            expected = 1 - 0.1 * 0.5 if is_weight else 1.0
            assert torch.equal(parameter, torch.full_like(parameter, expected)), name
    assert len(decayed) == 59 + 5  # convolutions; classifiers
    assert len(spared) == 2 * 59 + 5  # gamma and beta; biases


def test_every_parameter_is_in_one_group():
    model = GoogLeNet(7)
    optimizer = build_sgd(model, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=False)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]


@pytest.mark.parametrize("fused", [False, True])
def test_momentum_sgd_by_hand(fused):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    lr, momentum, decay = 0.1, 0.9, 0.01
    optimizer = build_sgd(model, lr=lr, momentum=momentum, weight_decay=decay, fused=fused)
    hand = {name: (p.detach().double(), 0.0) for name, p in model.named_parameters()}
    for step in range(5):
        model(torch.randn(4, 3)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = lr / (step + 1)
        for name, parameter in model.named_parameters():
            w, velocity = hand[name]
            wanted = parameter.grad.double() + (decay * w if name == "weight" else 0)
            velocity = momentum * velocity + wanted
            hand[name] = w - lr / (step + 1) * velocity, velocity
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), hand[name][0], atol=1e-6, rtol=0)


# --- the learning rate ---------------------------------------------------------------------------


def pytorchs(name: str, lr: float, steps_per_epoch: int, epochs: int) -> list[float]:
    """The learning rates of all steps, from PyTorch's schedulers; no warm-up."""
    total = epochs * steps_per_epoch
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = {
        "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=total),
        "linear": partial(
            lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=total
        ),
        "step": partial(
            lr_scheduler.MultiStepLR,
            milestones=[math.ceil(total / 3), math.ceil(2 * total / 3)],
            gamma=0.1,
        ),
        "paper": partial(lr_scheduler.StepLR, step_size=8 * steps_per_epoch, gamma=0.96),
    }[name](optimizer)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(5, 20), (7, 3), (1, 1)])
def test_without_warm_up_as_pytorchs(name, steps_per_epoch, epochs):
    rates = [
        learning_rate(
            step,
            name=name,
            lr=0.2,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            warmup_epochs=0,
        )
        for step in range(steps_per_epoch * epochs)
    ]
    expected = pytorchs(name, 0.2, steps_per_epoch, epochs)
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


# 90 epochs of 100 steps, 5 of them warm-up: 500 steps, then 8,500.
CLOSED_FORM = {
    ("cosine", 500): 0.1,
    ("cosine", 2625): 0.1 * (1 + math.sqrt(0.5)) / 2,  # a quarter of the way
    ("cosine", 4750): 0.05,
    ("cosine", 6875): 0.1 * (1 - math.sqrt(0.5)) / 2,
    ("linear", 500): 0.1,
    ("linear", 2625): 0.075,
    ("linear", 4750): 0.05,
    ("linear", 8999): 0.1 / 8500,
    ("step", 2999): 0.1,
    ("step", 3000): 0.01,
    ("step", 5999): 0.01,
    ("step", 6000): 0.001,
    ("step", 8999): 0.001,
    ("paper", 500): 0.1,
    ("paper", 799): 0.1,
    ("paper", 800): 0.096,
    ("paper", 1600): 0.09216,
    ("paper", 8999): 0.1 * 0.96**11,
}
ninety = partial(learning_rate, lr=0.1, steps_per_epoch=100, epochs=90, warmup_epochs=5)


@pytest.mark.parametrize(("name", "step"), CLOSED_FORM)
def test_closed_form(name, step):
    assert ninety(step, name=name) == pytest.approx(CLOSED_FORM[name, step], rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "warmup"), [(90, 5, 500), (6, 5, 300), (1, 5, 50), (10, 0.5, 50)]
)
def test_warm_up_is_linear_and_at_most_half(name, epochs, warmup_epochs, warmup):
    rate = partial(
        learning_rate,
        name=name,
        lr=0.1,
        steps_per_epoch=100,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
    )
    rising = [rate(step) for step in range(warmup)]
    assert rising == pytest.approx([0.1 * (i + 1) / warmup for i in range(warmup)], rel=1e-12)
    falling = [rate(step) for step in range(warmup, epochs * 100)]
    assert falling == sorted(falling, reverse=True)
    assert max(falling) <= 0.1


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_falls_to_zero(name):
    assert ninety(9000, name=name) == pytest.approx(0, abs=1e-12)
    assert 0 < ninety(8999, name=name) < 1e-4 * 0.2


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_function_of_the_step_alone(name):
    steps = list(range(0, 9000, 37))
    forwards = {step: ninety(step, name=name) for step in steps}
    random.Random(0).shuffle(steps)
    assert {step: ninety(step, name=name) for step in steps} == forwards


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'exponential'"):
        ninety(1000, name="exponential")

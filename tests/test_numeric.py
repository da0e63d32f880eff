"""A step whose loss or gradients are not finite changes nothing, and the run says where it was."""

import json
from pathlib import Path

import pytest
import torch
from conftest import copy_run
from safetensors.torch import load_file
from steps import StepBench

import googlenet_train.train as training
from googlenet_train import checkpoint, cli, ema, numeric, optim
from googlenet_train.data import order
from googlenet_train.data.index import open_source
from googlenet_train.data.loader import Batch
from googlenet_train.model.googlenet import GoogLeNet

NAN, INF = float("nan"), float("inf")
RATES = {"train/images_per_second", "train/data_wait"}
# 3 steps an epoch. Looks are rare: the device alone has to hold the line between them.
SETTINGS = (
    "schedule.epochs=4",
    "log.every_steps=4",
    "optimizer.accumulate=2",
    "data.val=null",
    "data.val_fraction=0",
)


# --- one step ------------------------------------------------------------------------------------


class Bench(StepBench):
    def __init__(self, limit: int = 0, fused: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__(GoogLeNet(3), lr=0.01, limit=limit, fused=fused)

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
        batch = Batch(images, torch.tensor([0, 1, 2, 0]))
        self.take([batch, batch], step=number, std=(0.25, 0.25, 0.25), clip_norm=1.0)

    def state(self) -> dict[str, torch.Tensor]:
        tensors = dict(self.live) | {"window": self.window}
        for name, parameter in self.model.named_parameters():
            slot = self.optimizer.state[parameter]
            tensors[f"momentum {name}"] = slot["momentum_buffer"]
        tensors |= {f"average {name}": tensor for name, tensor in self.averages[0.9].items()}
        return {name: tensor.clone() for name, tensor in tensors.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """What differs in at least one bit, by kind."""

    def kind(name: str) -> str:
        first = name.split(" ")[0]
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        return (
            first
            if first != name or name == "window"
            else ("statistics" if name.endswith(statistics) else "weights")
        )

    return {kind(n) for n in before if before[n].numpy().tobytes() != after[n].numpy().tobytes()}


EVERYTHING = {"weights", "statistics", "momentum", "average", "window"}


def bad_pixels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = training.to_device, []

    def second_micro_batch(images, *rest):
        calls.append(images)
        return real(images, *rest) * (NAN if len(calls) == 2 else 1)

    monkeypatch.setattr(training, "to_device", second_micro_batch)


def bad_gradient(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.model.fc.bias.register_hook(lambda gradient: gradient * INF)


@pytest.mark.parametrize("poison", [bad_pixels, bad_gradient])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_bad_step_changes_not_one_bit(monkeypatch, poison, fused, steps_before):
    bench = Bench(fused=fused)
    for number in range(steps_before):
        bench.step(number)
    before = bench.state()
    poison(bench, monkeypatch)
    bench.step(steps_before)
    assert changed(before, bench.state()) == set()
    assert bench.guard.counts.tolist() == [0, 0, steps_before]
    assert not torch.isfinite(bench.guard.values).all()


def test_a_good_step_changes_everything():
    bench = Bench()
    before = bench.state()
    bench.step(0)
    assert changed(before, bench.state()) == EVERYTHING
    assert bench.guard.counts.tolist() == [0, 0, -1]


GUARDS = {
    "statistics": (numeric, "settle", lambda guard, before, bad, share: None),
    "weights": (optim, "masked_step", lambda optimizer, bad: optimizer.step()),
    "average": (ema, "update", lambda a, live, d, bad, update=ema.update: update(a, live, d)),
}


@pytest.mark.parametrize("gone", GUARDS)
def test_the_comparison_notices_a_guard_that_is_gone(monkeypatch, gone):
    bench = Bench()
    bench.step(0)
    before = bench.state()
    monkeypatch.setattr(*GUARDS[gone])
    bad_pixels(bench, monkeypatch)
    bench.step(1)
    assert gone in changed(before, bench.state())


def test_after_the_fatal_step_nothing_changes_any_more(monkeypatch):
    bench = Bench()
    with monkeypatch.context() as poisoned:
        bad_pixels(bench, poisoned)
        bench.step(0)
    before = bench.state()
    bench.step(1)
    assert changed(before, bench.state()) == set()
    assert bench.guard.counts.tolist() == [0, 0, 0]


def test_below_the_limit_good_steps_go_on_and_the_row_begins_anew(monkeypatch):
    bench = Bench(limit=1)
    for number in range(4):
        before = bench.state()
        with monkeypatch.context() as poisoned:
            if number % 2 == 0:
                bad_pixels(bench, poisoned)
            bench.step(number)
        assert changed(before, bench.state()) == (set() if number % 2 == 0 else EVERYTHING)
    assert bench.guard.counts.tolist() == [2, 0, -1]


# --- a run ---------------------------------------------------------------------------------------


class Steps:
    """Which steps of the runs in this process are poisoned, and which are left out altogether."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.absent: set[int] = set()
        self.after = lambda step, model: None


@pytest.fixture
def steps(monkeypatch, in_folder) -> Steps:
    """In the folder of tiny.yaml, with the steps of runs under control."""
    steps, now = Steps(), [0]
    train_step, to_device = training.train_step, training.to_device

    def step(model, *rest, **settings):
        now[0] = settings["step"]
        if now[0] not in steps.absent:
            train_step(model, *rest, **settings)
        steps.after(now[0], model)

    def pixels(images, *rest):
        return to_device(images, *rest) * (NAN if now[0] in steps.bad else 1)

    monkeypatch.setattr(training, "train_step", step)
    monkeypatch.setattr(training, "to_device", pixels)
    return steps


def run(folder: str, *words: str) -> int:
    given = {word.split("=")[0] for word in words}
    settings = [setting for setting in SETTINGS if setting.split("=")[0] not in given]
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *settings, *words])


def saved(folder: str) -> list[int]:
    return [
        checkpoint.step_of(path) for path in checkpoint.checkpoints(Path(folder, "checkpoints"))
    ]


def unequal(one: str, other: str, step: int) -> list[str]:
    name = f"checkpoints/step-{step:08d}.safetensors"
    a, b = load_file(Path(one, name)), load_file(Path(other, name))
    assert a.keys() == b.keys()
    return [key for key in a if a[key].numpy().tobytes() != b[key].numpy().tobytes()]


def logged(folder: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def test_a_run_stops_and_keeps_the_state_before_the_bad_step(steps, capsys):
    assert run("sound", "checkpoint.every_steps=5", "checkpoint.keep=9") == 0
    steps.bad = {5}
    assert run("bad") == 5
    error = capsys.readouterr().err.split("error    ")[1]
    assert error.startswith("step 6: the loss is nan and the gradient's norm nan")
    assert "bad/numeric-error.json" in error
    assert "checkpoints/step-00000005.safetensors" in error
    # The checkpoints of epochs end at step 3; 5 was saved by the guard, later than it was trained.
    assert saved("bad") == [3, 5]
    assert unequal("sound", "bad", 5) == []
    assert [line["step"] for line in logged("bad")] == [4]


def test_weights_of_classes_too_large_to_add_up(steps, capsys):
    assert run("large", "loss.class_weights={cat: 1e38, dog: 1e38, owl: 1e38}") == 5
    assert "error    step 1: the loss is " in capsys.readouterr().err


def test_what_repeats_the_bad_step_is_written_down(steps):
    steps.bad = {5}
    assert run("bad") == 5
    facts = json.loads(Path("bad/numeric-error.json").read_text())
    index = open_source("photos/train")
    images = [index.name(i) for i in order.batch_indices(0, 5, 30, 8).tolist()]
    assert (facts["step"], facts["images"], facts["loss"]) == (6, images, "nan")
    assert facts["resume_from"] == "checkpoints/step-00000005.safetensors"
    assert facts["config"]["optimizer"]["lr"] == 0.01
    assert 0 < facts["lr"] < 0.01
    assert facts["since_last_log"]["steps"] == 1
    # Resumed as it is, it meets the same step again; nothing was lost and nothing changes.
    assert run("bad", "--resume") == 5
    assert json.loads(Path("bad/numeric-error.json").read_text())["images"] == images
    assert saved("bad") == [3, 5]


def test_a_stopped_run_goes_on_with_skip(steps):
    steps.bad = {5}
    assert run("bad") == 5
    assert run("bad", "--resume", "optimizer.on_nonfinite=skip") == 0
    steps.bad, steps.absent = set(), {5}
    assert run("absent", "optimizer.on_nonfinite=skip") == 0
    assert [n for n in unequal("absent", "bad", 12) if n != "window/guard"] == []


def test_a_skipped_step_is_as_if_it_had_not_been(steps):
    steps.bad = {4, 5, 9}
    assert run("skipped", "optimizer.on_nonfinite=skip", "optimizer.skip_limit=2") == 0
    lines = logged("skipped")
    assert [line["train/skipped_steps"] for line in lines] == [0, 2, 1]
    steps.bad, steps.absent = set(), {4, 5, 9}
    assert run("absent", "optimizer.on_nonfinite=skip", "optimizer.skip_limit=2") == 0
    assert unequal("absent", "skipped", 12) == []
    assert [{**line, "train/skipped_steps": 0} for line in lines] == logged("absent")
    assert all("train/loss" in line for line in lines)


def test_a_window_without_a_good_step_has_no_loss(steps):
    steps.bad = {4, 5, 6, 7}
    assert run("skipped", "optimizer.on_nonfinite=skip", "optimizer.skip_limit=4") == 0
    first, second, third = logged("skipped")
    assert "train/loss" in first
    assert "train/loss" not in second
    assert second["train/skipped_steps"] == 4
    assert "train/loss" in third


def test_one_more_in_a_row_than_allowed_stops(steps, capsys):
    skip = ("optimizer.on_nonfinite=skip", "optimizer.skip_limit=2")
    steps.absent = {5, 6}
    assert run("absent", *skip, "checkpoint.every_steps=7") == 0
    steps.bad, steps.absent = {5, 6, 7}, set()
    assert run("bad", *skip) == 5
    assert "step 8, number 3 in a row and past optimizer.skip_limit" in capsys.readouterr().err
    # Epochs' saves look too: at step 6 the row was no longer than allowed.
    assert saved("bad") == [3, 6, 7]
    assert [n for n in unequal("absent", "bad", 7) if n != "window/guard"] == []


@pytest.mark.slow
def test_resumed_after_a_skipped_step_is_bit_identical(steps):
    words = ("optimizer.on_nonfinite=skip", "checkpoint.every_steps=1", "checkpoint.keep=20")
    steps.bad = {4, 5, 9}
    assert run("whole", *words) == 0
    for step in (5, 10):
        copy_run(Path("whole"), Path(f"from-{step}"), step)
        assert run(f"from-{step}", "--resume", *words) == 0
        assert unequal("whole", f"from-{step}", 12) == []
        assert logged("whole") == logged(f"from-{step}")


def test_the_row_is_counted_across_a_resume(steps, capsys):
    words = ("optimizer.on_nonfinite=skip", "optimizer.skip_limit=2", "checkpoint.every_steps=1")
    steps.bad = {5, 6, 7}
    assert run("bad", *words) == 5
    copy_run(Path("bad"), Path("again"), 6)
    capsys.readouterr()
    assert run("again", "--resume", *words) == 5
    assert "step 8, number 3 in a row" in capsys.readouterr().err


def test_the_first_step_leaves_a_folder_that_is_free(steps, capsys):
    steps.bad = {0}
    assert run("bad") == 5
    assert "There is no checkpoint yet" in capsys.readouterr().err
    steps.bad = set()
    assert run("bad") == 0


def test_it_is_read_before_an_evaluation(steps):
    """Else the evaluation of a step would show a state that is older."""
    steps.bad = {4}
    assert run("bad", "data.val=photos/val", "log.every_steps=100") == 5
    assert [line["step"] for line in logged("bad")] == [3]


POISONED = ["inception4a.branch1.bn.running_var", "fc.weight"]


@pytest.mark.parametrize("name", POISONED)
def test_a_poisoned_state_is_not_saved(steps, capsys, name):
    """What the guard cannot see: no loss depends on it, or not yet."""

    def poison(step, model):
        if step == 5:
            model.state_dict()[name].view(-1)[3] = NAN

    steps.after = poison
    assert run("bad") == 5
    message = capsys.readouterr().err
    assert f"step 6: model/{name} holds NaN" in message
    assert saved("bad") == [3]
    newest, bad = checkpoint.newest(Path("bad/checkpoints"))
    assert newest is not None
    assert (newest.step, bad) == (3, [])
    steps.after = lambda step, model: None
    assert run("bad", "--resume") == 0


def test_a_weight_that_overflowed_before_the_bad_step_is_not_saved_either(steps, capsys):
    def poison(step, model):
        if step == 4:
            model.fc.weight.data[0, 0] = INF

    steps.after = poison
    assert run("bad") == 5
    message = capsys.readouterr().err
    assert "error    step 6: the loss is" in message
    assert "checkpoints/step-00000003.safetensors is the newest sound state" in message
    assert saved("bad") == [3]

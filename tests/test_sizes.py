"""Training images that grow: at which step, in a run, after a kill, and in what is told of it."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import copy_run
from safetensors.torch import load_file

from googlenet_train import cli
from googlenet_train import train as training
from googlenet_train.checks import trial
from googlenet_train.config import file as config_file
from googlenet_train.config import learning
from googlenet_train.data import sizes
from googlenet_train.data.sizes import Growth, image_size_at, pixels, stretches
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import announce, launch, milestones, opening

GROWING = ("data.image_size=96", "schedule.image_size={from: 32, to: 64, until: 0.75}")

# --- the function --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("growth", "total_steps", "expected"),
    [
        (Growth(128, 192, 0.75), 1000, [(0, 128), (375, 160), (750, 192)]),
        (Growth(128, 192, 1.0), 1000, [(0, 128), (500, 160), (999, 192)]),
        (Growth(64, 64, 0.3), 10, [(0, 64)]),
        (Growth(32, 128, 0.5), 7, [(0, 32), (2, 64), (3, 96), (4, 128)]),
        (Growth(32, 256, 1.0), 3, [(0, 32), (1, 128), (2, 256)]),  # no step for some sizes
        (Growth(32, 64, 0.001), 10, [(0, 32), (1, 64)]),  # `from` has the first step
        (Growth(32, 64, 0.75), 1, [(0, 64)]),  # and `to` the last
    ],
)
def test_closed_form(growth, total_steps, expected):
    assert list(stretches(total_steps, growth)) == expected


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 50, 999])
@pytest.mark.parametrize(
    "growth",
    [Growth(128, 192, 0.75), Growth(32, 224, 1.0), Growth(64, 64, 0.5), Growth(33, 257, 0.02)],
)
def test_sizes_grow_by_32_and_end_at_the_last(growth, total_steps):
    steps = list(range(total_steps))
    random.Random(0).shuffle(steps)  # a function of the step alone
    found = {step: image_size_at(step, total_steps, growth) for step in steps}
    sides = [found[step] for step in range(total_steps)]
    assert sides == sorted(sides)
    assert {(side - growth.first) % 32 for side in sides} == {0}
    assert sides[0] == growth.first or total_steps == 1
    assert set(sides[int(growth.until * total_steps) + 1 :]) | {sides[-1]} == {growth.last}
    starts = stretches(total_steps, growth)
    assert [side for step, side in enumerate(sides) if sides[:step].count(side) == 0] == [
        side for _, side in starts
    ]
    assert all(sides[start] == side and side not in sides[:start] for start, side in starts)
    for first, after in ((0, total_steps), (total_steps // 3, total_steps), (1, 2), (0, 0)):
        expected = sum(side**2 for side in sides[first:after])
        assert pixels(first, after, total_steps, growth) == expected


def test_the_config_knows_the_same_step():
    assert learning.SIZE_STEP == sizes.STEP


# --- a run ---------------------------------------------------------------------------------------


def logged(run: str) -> list[dict[str, float]]:
    times = {"train/images_per_second", "train/data_wait"}
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(step, side of its images) of every training step."""
    found: list[tuple[int, int]] = []
    taken = training.train_step

    def step(model, optimizer, averages, live, batches, *rest, **settings):
        found.append((settings["step"], batches[0].images.shape[-1]))
        taken(model, optimizer, averages, live, batches, *rest, **settings)

    monkeypatch.setattr(training, "train_step", step)
    return found


def test_resumed_across_a_change_it_ends_with_the_same_bits(in_folder, seen, capsys, monkeypatch):
    evaluated = []
    made = milestones.evaluate

    def evaluate(networks, index, setting, **rest):
        evaluated.append(setting.image_size)
        return made(networks, index, setting, **rest)

    monkeypatch.setattr(milestones, "evaluate", evaluate)
    command = ["--config", "tiny.yaml", *GROWING, "log.every_steps=1"]
    assert cli.main([*command, "run.dir=whole"]) == ExitCode.DONE
    sides = [(0, 32), (1, 32), (2, 32), (3, 32), (4, 64), (5, 64)]
    assert seen == sides
    assert evaluated == [96, 96]
    assert "heads, 32 growing to 64 at step 4, evaluated at 96 px\n" in capsys.readouterr().err
    written = Path("whole/config.yaml").read_text()
    assert "  image_size: {from: 32, to: 64, until: 0.75}\n" in written

    copy_run(Path("whole"), Path("killed"), last_step=3)  # three batches are made ahead
    seen.clear()
    resumed = [*command, "run.dir=killed", "--resume", "data.workers=3"]
    assert cli.main(resumed) == ExitCode.DONE
    assert seen == sides[3:]
    assert "goes on from 0.005, the images from 32 px\n" in capsys.readouterr().err
    a, b = (
        load_file(f"{run}/checkpoints/step-00000006.safetensors") for run in ("whole", "killed")
    )
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert logged("whole") == logged("killed")

    assert cli.main([*resumed, "schedule.image_size.until=0.5"]) == ExitCode.USAGE
    changed = "schedule.image_size: {'from': 32, 'to': 64, 'until': 0.75} -> {'from': 32, 'to': 64,"
    assert changed in capsys.readouterr().err


def test_a_longer_schedule_moves_the_changes_as_it_does_the_learning_rate(in_folder):
    short, longer = planned(*GROWING), planned(*GROWING, "schedule.epochs=4")
    assert [short.image_size(step) for step in range(6)] == [32, 32, 32, 32, 64, 64]
    assert [longer.image_size(step) for step in range(12)] == 9 * [32] + 3 * [64]


def planned(*words: str) -> launch.Launch:
    found = launch.plan(config_file.load("tiny.yaml", words), resume=False, fresh=False, allow=[])
    assert found is not None
    return found[0]


def test_larger_images_than_those_of_evaluation_are_refused(in_folder):
    planned("data.image_size=64", "schedule.image_size={from: 32, to: 64}")
    with pytest.raises(UserError) as refused:
        planned("data.image_size=63", "schedule.image_size={from: 32, to: 64}")
    assert refused.value.exit_code == ExitCode.USAGE
    assert str(refused.value) == (
        "command line schedule.image_size: to 64 is above data.image_size 63, the size of "
        "evaluation: the larger steps would be wasted. Lower `to`, or write data.image_size=64."
    )


def test_kept_photos_are_sharp_for_the_largest_training_images(in_folder):
    for words, side in ((GROWING, 82), (("data.image_size=96",), 123), ((), 41)):
        resolved = opening._resolved(planned(*words).config, torch.device("cpu"))
        assert resolved.data.cache_short_side == side, words


# --- what is told of it --------------------------------------------------------------------------


def test_check_weighs_the_steps_by_their_pixels(in_folder, monkeypatch):
    """A step of 0.25 s + 1 ms for each 32 x 32 pixels of its images."""
    monkeypatch.setattr(trial, "_timed_step", lambda run, side: 0.25 + 0.001 * (side // 32) ** 2)
    for words, largest, total in (
        (GROWING, 0.254, 4 * 0.251 + 2 * 0.254),
        # 32, 32, 64, 96, 128 and 160 pixels
        (
            ("schedule.image_size={from: 32, to: 160, until: 1}", "data.image_size=160"),
            0.275,
            6 * 0.25 + (1 + 1 + 4 + 9 + 16 + 25) * 0.001,
        ),
        (("data.image_size=64",), 0.254, 6 * 0.254),
    ):
        run = SimpleNamespace(launch=planned(*words))
        step, training = trial._timed_steps(run)
        assert step == pytest.approx(largest)
        assert training == pytest.approx(total)


def test_the_time_left_weighs_the_steps_by_their_pixels(in_folder, capsys):
    growing = planned(*GROWING, "schedule.epochs=40")  # 120 steps, 90 of them of 32 pixels
    plain = planned("schedule.epochs=40")
    for steps, of_run, said in (
        (20, growing, "3 min 10 s"),  # 70 + 30 * 4
        (100, growing, "32 s"),  # resumed at step 80: 20 * 4 / 2.5
        (20, plain, "1 min 40 s"),
    ):
        run = SimpleNamespace(launch=of_run, step=steps)
        announce.time_left(run, 1.0)
        assert f"about {said} left" in capsys.readouterr().err

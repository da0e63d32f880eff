"""Where memory does not suffice: one line that says what to change, and no checkpoint is lost."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import train
from safetensors.torch import load_file

from googlenet_train import checkpoint, cli, distributed
from googlenet_train import train as training
from googlenet_train.config import file as config_file
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import launch, milestones, shortage

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


def allocate() -> None:
    """The real error of the CPU's allocator."""
    torch.empty(2**60, dtype=torch.uint8)


def run(step: int = 0, saved: int = -1, *words: str) -> SimpleNamespace:
    """As much of a session as the messages look at."""
    config = config_file.load("tiny.yaml", words).config
    of_run = SimpleNamespace(image_size=lambda step: 32 + step)
    return SimpleNamespace(config=config, launch=of_run, step=step, saved=saved)


TRAINING = {
    "at the start": (
        run,
        "8 images of 32 px at once. optimizer.accumulate=2 takes half of that and leaves the batch "
        "and the learning rate as they are; a smaller data.image_size helps too; "
        "optimizer.accumulate=auto finds out what fits",
    ),
    "later": (
        lambda: run(64, 50),
        "8 images of 96 px at once. optimizer.accumulate=2 takes half of that and leaves the batch "
        "and the learning rate as they are; a smaller data.image_size helps too. The checkpoints "
        "are whole: go on with --resume optimizer.accumulate=2 --allow-config-change "
        "optimizer.accumulate",
    ),
    "with growing images": (
        lambda: run(0, -1, "schedule.image_size={from: 32, to: 32}", "optimizer.accumulate=2"),
        "4 images of 32 px at once. optimizer.accumulate=4 takes half of that and leaves the batch "
        "and the learning rate as they are; a smaller schedule.image_size.to helps too; "
        "optimizer.accumulate=auto finds out what fits",
    ),
    "where half is not to be had": (
        lambda: run(0, -1, "optimizer.batch_size=9"),
        "9 images of 32 px at once. optimizer.accumulate=3 takes less of that and leaves the batch "
        "and the learning rate as they are; a smaller data.image_size helps too; "
        "optimizer.accumulate=auto finds out what fits",
    ),
    "of pairs": (
        lambda: run(0, -1, "augment.mixup=0.2", "optimizer.accumulate=4"),
        "2 images of 32 px at once. Lower data.image_size, or optimizer.batch_size and "
        "optimizer.lr alike",
    ),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_what_helps_a_training_step(in_folder, kind):
    make, said = TRAINING[kind]
    with pytest.raises(UserError) as told, shortage.in_training(make()):
        raise CUDA
    assert told.value.exit_code == ExitCode.USAGE
    assert str(told.value) == f"out of memory in a training step: {said}"


def test_ranks_share_a_batch(in_folder, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    told = r"step: 4 images .* optimizer\.accumulate=2 takes half"
    with pytest.raises(UserError, match=told), shortage.in_training(run()):
        raise CUDA


def test_what_helps_an_evaluation(in_folder):
    for step, words, said in (
        (0, (), "256 images of 32 px at once. evaluate.batch_size=128 takes half of that and gives "
         "the same result"),
        (9, ("evaluate.batch_size=3",), "3 images of 32 px at once. evaluate.batch_size=1 takes "
         "half of that and gives the same result. The checkpoints are whole: go on with --resume "
         "evaluate.batch_size=1 --allow-config-change evaluate.batch_size"),
        (9, ("evaluate.batch_size=1",), "1 images of 32 px at once. Lower data.image_size"),
    ):  # fmt: skip
        with (
            pytest.raises(shortage.EvaluationTooLarge) as told,
            shortage.in_evaluation(run(step, -1, *words)),
        ):
            allocate()
        assert str(told.value) == f"out of memory in an evaluation: {said}"


@pytest.mark.parametrize("where", [shortage.in_training, shortage.in_evaluation])
def test_other_errors_stay_what_they_are(in_folder, where):
    for error in (RuntimeError("device-side assert"), UserError("", ExitCode.DATA), KeyError("x")):
        with pytest.raises(type(error)) as raised, where(run()):
            raise error
        assert raised.value is error


def logged(folder: Path) -> list[dict[str, float]]:
    times = {"train/images_per_second", "train/data_wait"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def test_no_checkpoint_is_lost(trained_folder, monkeypatch, capsys):
    """Killed at step 3, short of memory in step 4 and in the evaluation of step 6, and no worse."""
    monkeypatch.chdir(trained_folder)
    whole = Path("runs/tiny/checkpoints/step-00000006.safetensors")
    expected, log = load_file(whole), logged(Path("runs/tiny"))
    whole.unlink()

    def resume() -> tuple[int, str]:
        code = cli.main(["--config", "tiny.yaml", "--resume"])
        return code, capsys.readouterr().err

    def only_at(step: int, made):
        def instead(*given, **named):
            if named.get("step", step) == step:
                allocate()
            return made(*given, **named)

        return instead

    with monkeypatch.context() as short:
        short.setattr(training, "train_step", only_at(4, training.train_step))
        code, said = resume()
    assert code == ExitCode.USAGE
    assert said.splitlines()[-1].startswith("error    out of memory in a training step: 8 images")
    words = said.rpartition("go on with ")[2].split()
    assert words == [
        *("--resume", "optimizer.accumulate=2"),
        *("--allow-config-change", "optimizer.accumulate"),
    ]
    loaded = config_file.load("tiny.yaml", [words[1]])
    assert launch.plan(loaded, resume=True, fresh=False, allow=[words[3]])
    assert [path.name for path in checkpoint.checkpoints(whole.parent)] == [
        "step-00000003.safetensors"
    ]

    with monkeypatch.context() as short:
        short.setattr(milestones, "evaluate", only_at(0, milestones.evaluate))
        code, said = resume()
    assert code == ExitCode.USAGE
    assert "saved    at step 6; --resume goes on from there\n" in said
    assert "error    out of memory in an evaluation: 256 images of 32 px at once. " in said
    assert checkpoint.verify(whole)["evaluated"] == 3
    code, said = resume()
    assert (code, "EMA top-1" in said) == (ExitCode.DONE, True)
    after = load_file(whole)
    assert [name for name in expected if not torch.equal(expected[name], after[name])] == []
    assert logged(Path("runs/tiny")) == log


def test_elsewhere_it_is_no_bug(in_folder, monkeypatch, capsys):
    def short(words):
        raise CUDA

    monkeypatch.setitem(cli.VERBS, "config", short)
    assert cli.main(["config", "--defaults"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.startswith("error    out of memory. End other programs that use the device, or")
    assert said.endswith("(CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has)\n")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_rank_that_is_short_of_memory_says_so_and_the_others_end(tiny_folder):
    before = """
import os, torch
from googlenet_train import train as training
def short(*given, **named):
    if os.environ["RANK"] == "1" and named["step"] == 4:
        torch.empty(2**60, dtype=torch.uint8)
    return stepped(*given, **named)
stepped, training.train_step = training.train_step, short
"""
    done = train(2, tiny_folder, "distributed.timeout=60", before=before)
    assert done.codes == [ExitCode.DISTRIBUTED, ExitCode.USAGE], done.stderr
    assert "error    rank 1: out of memory in a training step: 4 images of 32 px" in done.stderr
    assert "rank 1 of 2 does not answer" in done.stderr
    saved = checkpoint.checkpoints(tiny_folder / "runs/tiny/checkpoints")
    assert [checkpoint.step_of(path) for path in saved] == [3]
    assert checkpoint.verify(saved[0])

"""A signal inside an evaluation: the run goes on with that evaluation, and logs it once."""

import json
import os
import signal
from pathlib import Path

import pytest

from googlenet_train import cli, evaluate
from googlenet_train.errors import ExitCode
from googlenet_train.run import milestones

RATES = {"train/images_per_second", "train/data_wait"}


def run(folder: str, *words: str) -> int:
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *words])


def logged(folder: str) -> list[dict[str, float]]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in RATES} for line in lines]


def saved(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder, "checkpoints").glob("*.safetensors"))


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """SIGTERM arrives within the evaluations of these numbers (1 is the first)."""
    numbers: list[int] = []
    real, calls = milestones.evaluate, []

    def interrupted_evaluate(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(milestones, "evaluate", interrupted_evaluate)
    assert real is evaluate.evaluate
    return numbers


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM")
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.usefixtures("in_folder")
def test_an_evaluation_that_was_cut_short_is_made_on_resume(
    number: int, terminated: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("whole") == ExitCode.DONE  # two epochs of 3 steps, evaluated after each
    terminated.append(2 + number)
    assert run("cut") == ExitCode.SIGTERM
    step = 3 * number
    assert not any("val/top1" in line for line in logged("cut") if line["step"] == step)
    assert saved("cut")[-1] == f"step-{step:08d}.safetensors"
    assert run("cut", "--resume") == ExitCode.DONE
    assert "nothing to do" not in capsys.readouterr().err
    assert logged("cut") == logged("whole")
    assert saved("cut") == saved("whole")
    assert run("cut", "--resume") == ExitCode.DONE
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM")
@pytest.mark.usefixtures("in_folder")
def test_an_evaluation_made_on_resume_is_in_a_checkpoint_at_once(
    terminated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminated.append(1)
    assert run("cut") == ExitCode.SIGTERM

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as good as a kill: nothing is saved on the way out

    with monkeypatch.context() as early:
        early.setattr("googlenet_train.train.train_step", killed)
        assert run("cut", "--resume") == ExitCode.SIGINT
    assert run("cut", "--resume") == ExitCode.DONE
    evaluations = [line["step"] for line in logged("cut") if "val/top1" in line]
    assert evaluations == [3, 6]

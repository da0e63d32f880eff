"""Which folder a run gets, and that no second process writes there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from googlenet_train import checkpoint
from googlenet_train.config import Config
from googlenet_train.config import text as config_text
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import lock, runs
from googlenet_train.run.runs import RunFolder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**run: object) -> Config:
    return Config.model_validate({"data": {"train": "photos"}, "run": run})


def saved(folder: str, config: Config, step: int, total: int = 10) -> Path:
    """A run in `folder` that came to `step` of `total`."""
    path = Path(folder)
    state = checkpoint.TrainState(step, {"w": torch.ones(1)}, info={"total_steps": total})
    checkpoint.save(path / runs.CHECKPOINTS, state)
    (path / runs.CONFIG).write_text(config_text.dump(config))
    (path / lock.FILE).touch()
    return path


def choose(config: Config, *, resume: bool = False, fresh: bool = False) -> RunFolder:
    return runs.choose(config, "x", resume=resume, fresh=fresh)


def refused(config: Config, **flags: bool) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        choose(config, **flags)
    assert caught.value.exit_code == ExitCode.USAGE
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


def test_the_default_is_named_after_the_config_and_choosing_creates_nothing():
    assert choose(settings()) == RunFolder(Path("runs/x"))
    assert choose(settings(), resume=True) == RunFolder(Path("runs/x"))
    assert list(Path().iterdir()) == []


def test_other_and_finished_runs_give_the_next_number_and_it_says_so():
    saved("runs/x", settings(), 10)
    assert choose(settings()) == RunFolder(Path("runs/x-2"), "runs/x holds another run")
    saved("runs/x-2", settings(seed=5), 3)
    assert choose(settings()).folder == Path("runs/x-3")
    assert choose(settings(), fresh=True).folder == Path("runs/x-3")


def test_a_folder_of_other_things_is_left_alone():
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").write_text("mine: true\n")
    assert choose(settings()).folder == Path("runs/x-2")


@pytest.mark.parametrize("where", ["runs/x", "runs/x-2"])
def test_an_unfinished_run_of_the_config_is_never_shadowed(where):
    saved("runs/x", settings(seed=1), 10)
    saved(where, settings(), 1234, total=5000)
    message = refused(settings())
    assert where in message
    assert "step 1,234" in message
    assert "--resume" in message
    assert "--fresh" in message
    assert choose(settings(), resume=True) == RunFolder(Path(where))


def test_an_unfinished_run_of_another_config_or_other_data_is_not_this_one():
    saved("runs/x", settings(seed=1), 3)
    assert choose(settings()).folder == Path("runs/x-2")
    other = settings().model_copy(update={"data": settings().data.model_copy(update={"val": "v"})})
    saved("runs/x-2", other, 3)
    assert choose(settings()).folder == Path("runs/x-3")


def test_settings_that_reach_no_weight_make_no_other_run():
    more = settings().data.model_copy(update={"workers": 7})
    saved("runs/x", settings().model_copy(update={"data": more}), 3)
    assert "runs/x" in refused(settings())


def without_checkpoints(folder: str, config: Config) -> Path:
    """A run of which somebody deleted the checkpoints, to make room."""
    path = saved(folder, config, 10)
    (path / runs.BEST).write_text('{"step": 10}')
    for file in (path / runs.CHECKPOINTS).iterdir():
        file.unlink()
    return path


def test_a_run_whose_checkpoints_are_gone_is_not_written_over():
    without_checkpoints("runs/x", settings())
    assert choose(settings()) == RunFolder(Path("runs/x-2"), "runs/x holds another run")
    for config in (settings(), settings(dir="runs/x")):
        with pytest.raises(UserError, match=r"runs/x has best\.json and no checkpoint") as caught:
            choose(config, resume=True)
        assert caught.value.exit_code == ExitCode.CHECKPOINT
    assert "holds a run already" in refused(settings(dir="runs/x"))
    assert choose(settings(dir="runs/x"), fresh=True).aside == Path("runs/x-old")


def test_of_several_others_the_nearest_is_resumed_and_it_says_so():
    data = settings().data
    saved("runs/x", settings(seed=1), 3)
    labelled = data.model_copy(update={"labels": "l.csv", "exif_orientation": True})
    saved("runs/x-2", settings(seed=1).model_copy(update={"data": labelled}), 3)
    run = choose(settings(), resume=True)
    assert run.folder == Path("runs/x")
    assert run.note == "of 2 runs the nearest; run.dir=FOLDER names another"


def test_fresh_renames_and_deletes_nothing():
    old = saved("runs/x", settings(), 3)
    content = {p.relative_to(old): p.read_bytes() for p in old.rglob("*") if p.is_file()}
    for aside in ("runs/x-old", "runs/x-old-2"):
        run = choose(settings(), fresh=True)
        assert run == RunFolder(Path("runs/x"), aside=Path(aside))
        assert old.exists()  # nothing is renamed before all else is known to be right
        runs.make(run)
        assert list(Path("runs/x").iterdir()) == []
        saved("runs/x", settings(), 3)
    moved = Path("runs/x-old")
    assert {
        p.relative_to(moved): p.read_bytes() for p in moved.rglob("*") if p.is_file()
    } == content


def test_resume_takes_the_same_config_else_the_last_other_one():
    """The check of changed settings then says what differs."""
    saved("runs/x", settings(), 3)
    saved("runs/x-2", settings(seed=1), 3)
    assert choose(settings(), resume=True).folder == Path("runs/x")
    assert choose(settings(seed=9), resume=True).folder == Path("runs/x-2")


def test_a_damaged_last_checkpoint_still_is_the_run():
    folder = saved("runs/x", settings(), 3) / runs.CHECKPOINTS
    saved("runs/x", settings(), 6)
    checkpoint.checkpoint_path(folder, 6).write_bytes(b"")
    at = runs.progress(Path("runs/x"))
    assert at is not None
    assert (at.step, at.total_steps) == (3, 10)
    checkpoint.checkpoint_path(folder, 3).write_bytes(b"")
    at = runs.progress(Path("runs/x"))
    assert at is not None
    assert (at.step, at.finished) == (6, False)
    assert "runs/x" in refused(settings())


def test_a_start_that_failed_before_its_first_checkpoint_is_used_again():
    folder = Path("runs/x")
    for leftover in (lock.FILE, "metrics.jsonl", runs.CONFIG, "events.out.tfevents.1"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / leftover).touch()
        assert choose(settings()) == RunFolder(folder), leftover
        assert choose(settings(dir="runs/x")) == RunFolder(folder)


def test_explicit_folder():
    config = settings(dir="mine")
    assert choose(config) == RunFolder(Path("mine"))
    Path("mine").mkdir()
    assert choose(config) == RunFolder(Path("mine"))
    saved("mine", config, 10)  # even a finished one is never written over
    message = refused(config)
    assert "run.dir=mine" in message
    assert "--resume" in message
    assert "--fresh" in message
    assert choose(config, resume=True) == RunFolder(Path("mine"))
    assert choose(config, fresh=True) == RunFolder(Path("mine"), aside=Path("mine-old"))


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"fresh": True}])
def test_an_explicit_folder_of_other_things_is_refused_whatever_the_flags(flags):
    Path("photos").mkdir()
    Path("photos/config.yaml").write_text("mine: true\n")
    assert "no run" in refused(settings(dir="photos"), **flags)
    assert "is a file" in refused(settings(dir="photos/config.yaml"), **flags)


def test_a_folder_that_cannot_be_made_is_a_storage_error():
    Path("file").touch()
    with pytest.raises(UserError, match="file/run cannot be made") as caught:
        runs.make(RunFolder(Path("file/run")))
    assert caught.value.exit_code == ExitCode.STORAGE


HOLD = """
import os, sys, time
from pathlib import Path
from googlenet_train.run import lock
with lock.hold(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else None
    if child != 0:
        print(child, flush=True)
    time.sleep(60)
"""


def hold(folder: str, *words: str) -> tuple["subprocess.Popen[str]", str]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(os.name == "nt", reason="no lock on Windows")
def test_a_second_process_is_refused_until_the_first_is_dead():
    process, _ = hold("runs/x")
    try:
        with pytest.raises(UserError, match="another process") as caught, lock.hold(Path("runs/x")):
            pass
        assert caught.value.exit_code == ExitCode.USAGE
    finally:
        end(process)  # SIGKILL: it had no chance to clean up
    with lock.hold(Path("runs/x")):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent():
    process, child = hold("runs/x", "fork")
    try:
        end(process)
        os.kill(int(child), 0)  # alive
        with lock.hold(Path("runs/x")):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="no lock on Windows")
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"fresh": True}])
def test_a_run_in_use_is_neither_resumed_nor_renamed_nor_shadowed(flags):
    """Also before its first checkpoint."""
    for step in (0, 3):
        folder = Path("runs/x")
        if step:
            saved("runs/x", settings(), step)
        else:
            folder.mkdir(parents=True)
            (folder / runs.CONFIG).write_text(config_text.dump(settings()))
        process, _ = hold("runs/x")
        try:
            assert "another process" in refused(settings(), **flags)
            assert "another process" in refused(settings(dir="runs/x"), **flags)
        finally:
            end(process)


def test_named_checkpoint():
    run = saved("runs/x", settings(), 3)
    saved("runs/x", settings(), 6)
    three = checkpoint.checkpoint_path(run / runs.CHECKPOINTS, 3)
    assert runs.named_checkpoint(run, "last") is None
    assert runs.named_checkpoint(run, "3") == three
    assert runs.named_checkpoint(three, "last") == three
    info = {"total_steps": 10, "best": {"step": 3, "top1": 50.0}}
    checkpoint.save(
        run / runs.CHECKPOINTS, checkpoint.TrainState(6, {"w": torch.ones(1)}, info=info)
    )
    assert runs.named_checkpoint(run, "best") == three


@pytest.mark.parametrize(
    ("run", "which", "message"),
    [
        ("runs/x", "4", "has steps 3, 6"),
        ("runs/x", "newest", "has steps 3, 6"),
        ("runs/x", "best", "never evaluated"),
        ("runs/y", "last", "does not exist"),
        ("runs", "last", "holds no checkpoint"),
    ],
)
def test_named_checkpoint_that_is_none(run, which, message):
    saved("runs/x", settings(), 6)
    saved("runs/x", settings(), 3)
    with pytest.raises(UserError, match=message) as caught:
        runs.named_checkpoint(Path(run), which)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_gap_in_the_numbers_hides_no_unfinished_run():
    saved("runs/x-2", settings(), 3)
    saved("runs/x-10", settings(seed=5), 3)
    assert "runs/x-2 holds an unfinished run" in refused(settings())
    assert choose(settings(), resume=True).folder == Path("runs/x-2")
    assert choose(settings(seed=5), resume=True).folder == Path("runs/x-10")


def test_only_a_longer_schedule_is_no_change():
    def of(epochs: int) -> Config:
        return Config.model_validate({"data": {"train": "photos"}, "schedule": {"epochs": epochs}})

    assert runs.changes(of(3), of(4)) == []
    assert runs.changes(of(3), of(2)) == [("schedule.epochs", 3, 2)]


def test_the_last_step_is_not_the_end_before_it_is_evaluated():
    path = saved("runs/x", settings(), 10)
    state = checkpoint.TrainState(
        10, {"w": torch.ones(1)}, info={"total_steps": 10, "evaluated": 9}
    )
    checkpoint.save(path / runs.CHECKPOINTS, state)
    assert "unfinished run" in refused(settings())


def test_best_is_what_the_newest_checkpoint_says_whatever_a_kill_left_in_best_json():
    path = saved("runs/x", settings(), 4)
    info = {"total_steps": 10, "best": {"step": 4, "top1": 50.0}}
    checkpoint.save(
        path / runs.CHECKPOINTS, checkpoint.TrainState(6, {"w": torch.ones(1)}, info=info)
    )
    (path / runs.BEST).write_text(
        '{"step": 2, "checkpoint": "checkpoints/step-00000002.safetensors"}'
    )
    assert runs.best_checkpoint(path) == path / runs.CHECKPOINTS / "step-00000004.safetensors"

"""What a run writes down: one JSON object a line, TensorBoard events, and lines for a person."""

import errno
import json
import os
import sys
import threading
import time
from io import StringIO

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from googlenet_train import reporting
from googlenet_train.errors import UserError
from googlenet_train.reporting import Reporter, duration, say

STEPS_PER_EPOCH = 12


def lines(folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: per tag, (step, value)."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def log(folder, start: int, steps: range, offset: float = 0.0) -> None:
    """One process of a run: begins at step `start`, logs at `steps`, and ends."""
    reporter = Reporter(folder, start, STEPS_PER_EPOCH)
    for step in steps:
        reporter.log(step, {"train/loss": step / 4 + offset, "train/lr": 0.5})
        if step % 20 == 0:
            reporter.log(step, {"val/top1": float(step)})
    reporter.flush()
    reporter.close()


def wait_for_the_next_second() -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second."""
    time.sleep(1.05 - time.time() % 1)


# --- metrics.jsonl -------------------------------------------------------------------------------


def test_metrics_lines(tmp_path):
    log(tmp_path, 0, range(10, 21, 10))
    assert lines(tmp_path) == [
        {"step": 10, "epoch": 0.8333, "train/loss": 2.5, "train/lr": 0.5},
        {"step": 20, "epoch": 1.6667, "train/loss": 5.0, "train/lr": 0.5},
        {"step": 20, "epoch": 1.6667, "val/top1": 20.0},
    ]


@pytest.mark.parametrize(
    "torn", ["", '{"step": 60, "epo', '{"step": 60, "loss": 1', "\0" * 64], ids=len
)
def test_resume_cuts_what_lies_past_the_restored_step(tmp_path, torn):
    log(tmp_path, 0, range(10, 51, 10))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    log(tmp_path, 30, range(40, 61, 10), offset=100)
    losses = [
        (line["step"], line["train/loss"]) for line in lines(tmp_path) if "train/loss" in line
    ]
    assert losses == [(10, 2.5), (20, 5), (30, 7.5), (40, 110), (50, 112.5), (60, 115)]
    evaluations = [line["step"] for line in lines(tmp_path) if "val/top1" in line]
    assert evaluations == [20, 40, 60]


def test_resume_between_two_lines_keeps_the_earlier(tmp_path):
    log(tmp_path, 0, range(10, 51, 10))
    log(tmp_path, 25, range(0))
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 20]


def test_a_run_from_step_0_begins_an_empty_log(tmp_path):
    log(tmp_path, 0, range(10, 51, 10))
    log(tmp_path, 0, range(10, 11))
    assert [line["step"] for line in lines(tmp_path)] == [10]
    assert scalars(tmp_path) == {"train/loss": [(10, 2.5)], "train/lr": [(10, 0.5)]}


# --- TensorBoard ---------------------------------------------------------------------------------


def test_tensorboard_scalars(tmp_path):
    log(tmp_path, 0, range(10, 41, 10))
    assert scalars(tmp_path) == {
        "train/loss": [(10, 2.5), (20, 5.0), (30, 7.5), (40, 10.0)],
        "train/lr": [(10, 0.5), (20, 0.5), (30, 0.5), (40, 0.5)],
        "val/top1": [(20, 20.0), (40, 40.0)],
    }


def test_tensorboard_forgets_what_lies_past_the_restored_step(tmp_path):
    log(tmp_path, 0, range(10, 51, 10))
    wait_for_the_next_second()
    log(tmp_path, 30, range(40, 51, 10), offset=100)
    shown = scalars(tmp_path)
    # Step 30 itself stays; steps 40 and 50 are the second process's.
    assert shown["train/loss"] == [(10, 2.5), (20, 5), (30, 7.5), (40, 110), (50, 112.5)]
    assert shown["val/top1"] == [(20, 20), (40, 40)]


def test_pictures_and_text(tmp_path):
    Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / "photos.jpg")
    reporter = Reporter(tmp_path, 0, STEPS_PER_EPOCH)
    reporter.picture("train/batch", tmp_path / "photos.jpg", 3)
    reporter.text("config", "a: 1\nb: 2\n")
    reporter.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("train/batch")
    assert (image.step, image.width, image.height) == (3, 8, 6)
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0] == b"    a: 1\n    b: 2"  # Markdown's code block


# --- durability ----------------------------------------------------------------------------------


def test_flush_and_fsync_put_all_files_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(reporting, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    reporter = Reporter(tmp_path, 0, STEPS_PER_EPOCH)
    try:
        reporter.log(10, {"train/loss": 2.5})
        reporter.flush()
        reporter.fsync()
        # Before it is closed: what another process would find after a crash.
        assert lines(tmp_path) == [{"step": 10, "epoch": 0.8333, "train/loss": 2.5}]
        assert scalars(tmp_path) == {"train/loss": [(10, 2.5)]}
        files = [tmp_path / "metrics.jsonl", *tmp_path.glob("events.out.tfevents.*")]
        assert len(files) == 2
        assert set(synced) == {file.stat().st_ino for file in files}
    finally:
        reporter.close()


# --- for a person --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (48.4, "48 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (226, "3 min 46 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (5 * 3600 + 12 * 60 + 59, "5 h 12 min"),
        (48 * 3600 - 1, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (51 * 3600 + 1800, "2 d 3 h"),
        (100 * 86400, "100 d 0 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_say_speaks_on_stderr(capsys):
    say("hello")
    say()
    captured = capsys.readouterr()
    assert captured.err == "hello\n\n"
    assert captured.out == ""


def test_status_without_a_terminal_is_a_line_every_five_seconds(tmp_path, monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now)
    reporter = Reporter(tmp_path, 0, STEPS_PER_EPOCH)
    try:
        for step in range(1, 13):
            now += 1
            reporter.advance(step, 3)
            reporter.status(f"loss {step}", step, 1200)
    finally:
        reporter.close()
    expected = "step 5/1,200  loss 5\nstep 10/1,200  loss 10\n"
    assert capsys.readouterr().err == expected


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_an_epoch_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reporter = Reporter(tmp_path, 6, STEPS_PER_EPOCH)  # resumed in the middle of the first epoch
    try:
        for step in range(7, 16):
            reporter.advance(step, 3)
            reporter.status(f"loss {step}", step, 36)
    finally:
        reporter.close()
    shown = terminal.getvalue()
    assert "epoch 1/3" in shown
    assert "6/12" in shown
    assert "epoch 2/3" in shown
    assert "epoch 3/3" not in shown
    assert "step 7/36" not in shown  # beside the bar, not as lines


def test_an_error_of_the_disk_in_tensorboards_thread_is_told_once(tmp_path, monkeypatch, capsys):
    """By whoever logs next; the thread's own traceback would come on top."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: told.append(failed.exc_type))
    before = threading.excepthook
    reporter = Reporter(tmp_path, 0, STEPS_PER_EPOCH)

    def write(data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = reporter._board.file_writer.event_writer._async_writer._worker
    monkeypatch.setattr(writer._record_writer, "write", write)
    reporter.log(1, {"train/loss": 1.0})
    writer.join(10)
    with pytest.raises(UserError, match=r"the log could not be written \(No space left"):
        reporter.flush()
    with pytest.raises(UserError, match="the log could not be written"):
        reporter.close()
    assert told == []
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    assert told == [ZeroDivisionError]
    assert threading.excepthook is before

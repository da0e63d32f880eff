"""Mistakes as people make them, on the real command line: one clear line, nothing lost."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, Cli
from PIL import Image

from googlenet_train.cli import main
from googlenet_train.verbs import evaluate_runs

LAUNCH = re.compile(r"(googlenet-train|config  |run     |fresh   |loading PyTorch)")


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def one_line(answer: Answer, rc: int) -> str:
    """The error of a command, which is one line and the last."""
    assert answer.rc == rc, answer.stderr
    assert answer.stdout == ""
    *before, last = answer.stderr.splitlines()
    assert last.startswith("error    ")
    assert [line for line in before if not LAUNCH.match(line)] == []
    return last.removeprefix("error    ")


def damage(path: Path) -> None:
    """Cut a checkpoint in half; the file that it is a link to stays whole."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    path.write_bytes(half)


# Before torch is loaded: each takes a fraction of a second, and creates nothing.


@pytest.mark.parametrize(
    ("words", "rc", "message"),
    [
        (
            ["--config", "imagenet.yaml"],
            3,
            r"imagenet\.yaml:\d+ data\.train: no folder 'data/imagenet/train'; paths start from "
            r"the .*, '.*'\. Pass data\.train=FOLDER, or try --config quickstart\.yaml.",
        ),
        (
            ["--config", "tiny.yaml", "data.train=photos/trian"],
            3,
            r"command line data\.train: no folder 'photos/trian'; did you mean 'photos/train'\? "
            r"Pass data\.train=FOLDER, .*",
        ),
        (
            ["--config", "tiny.yaml", "data.val=photos/none"],
            3,
            r"command line data\.val: no folder 'photos/none'.*\. Pass data\.val=FOLDER\.",
        ),
        (
            ["--config", "tiny.yaml", "data.train=empty"],
            3,
            r".*data\.train: 'empty' holds no photos.*",
        ),
        (
            ["--config", "tiny.yaml", "data.train=photos/train/cat"],
            3,
            r".*'photos/train/cat' holds photos but no class folders.*",
        ),
        (
            ["--config", "tiny.yaml", "data.train=photos"],
            3,
            r".*did you mean 'photos/train', with data\.val='photos/val'\?.*",
        ),
        (["--config", "tiny.yaml", "data.val=more"], 3, r"command line data\.val: class 'bird'.*"),
        (
            ["--config", "tiny.yaml", "optimizer.batch_size=31"],
            2,
            r"command line optimizer\.batch_size 31 is larger than the 30 training images.* is 30",
        ),
        (
            ["--config", "tiny.yaml", "optimizer.bach_size=4"],
            2,
            r"command line optimizer\.bach_size=4: .*did you mean optimizer\.batch_size\?",
        ),
        (
            ["--config", "tiny.yaml", "optimizer.lr=fast"],
            2,
            r'command line optimizer\.lr: must be .*number.*, not the text "fast".*',
        ),
        (["--config", "typo.yaml"], 2, r"typo\.yaml:3 optimizer\.leraning_rate: .*"),
        (["--config", "tiny.yml"], 2, r".*tiny\.yml.*tiny\.yaml.*"),
        (
            ["--config", "tiny.yaml", "model.num_classes=4"],
            2,
            r"command line model\.num_classes: 4, but data\.train has 3 classes\. Write auto, .*",
        ),
        (
            ["--config", "tiny.yaml", "data.train=wrapped", "model.num_classes=auto"],
            3,
            r"command line data\.train: one class, 'photos', so there is nothing to tell apart\. "
            r"It holds the folders cat, dog, owl; did you mean 'wrapped/photos'\?",
        ),
        (
            ["--config", "tiny.yaml", "--config", "quickstart.yaml"],
            2,
            r"--config is given twice\. Leave one out\. See .*",
        ),
        (
            ["photos/", "optimizer.lr", "=", "0.1"],
            2,
            r"optimizer\.lr is a setting: write optimizer\.lr=VALUE, without spaces\.",
        ),
        (
            ["--config", "tiny.yaml", "run.dir=typo.yaml"],
            2,
            r"run\.dir=typo\.yaml is a file\. Choose a folder.*",
        ),
        (
            ["--config", "tiny.yaml", "run.dir=typo.yaml/run"],
            6,
            r"the run folder typo\.yaml/run cannot be made \(Not a directory\)\. Choose another.*",
        ),
        (["--config", "tiny.yaml", "run.dir=photos"], 2, r"run\.dir=photos holds other files.*"),
        (
            ["--config", "tiny.yaml", "--fresh", "run.dir=photos"],
            2,
            r"run\.dir=photos holds other files.*",
        ),
        (["evaluate", "photos"], 2, r"photos holds no checkpoint\. RUN is .*"),
        (["predict", "runs/none", "photos/train"], 2, r"runs/none does not exist\. RUN is .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_found_before_anything_is_created(tiny_folder, cli: Cli, words, rc, message):
    (tiny_folder / "empty").mkdir()
    (tiny_folder / "typo.yaml").write_text(
        "data: {train: photos/train}\noptimizer:\n  leraning_rate: 0.1\n"
    )
    shutil.copytree(tiny_folder / "photos/val", tiny_folder / "more")
    shutil.copytree(tiny_folder / "photos/val", tiny_folder / "wrapped/photos")
    (tiny_folder / "more/bird").mkdir()
    shutil.copy(tiny_folder / "photos/val/owl/0.jpg", tiny_folder / "more/bird")
    before = sorted(tiny_folder.rglob("*"))
    assert re.fullmatch(message, one_line(cli(*words, cwd=tiny_folder), rc))
    assert sorted(tiny_folder.rglob("*")) == before


def test_a_file_that_is_no_image_is_named(tiny_folder, cli: Cli):
    for photo in (tiny_folder / "photos/train/dog").iterdir():  # so that the first step meets one
        photo.write_text("not a photo")
    answer = cli("--config", "tiny.yaml", cwd=tiny_folder)
    assert answer.rc == 3
    assert "photos/train/dog/" in answer.error
    # What the failed start left is in nobody's way: the next one takes the same folder.
    assert (tiny_folder / "runs/tiny/config.yaml").exists()
    again = cli("--config", "tiny.yaml", "data.train=none", cwd=tiny_folder)
    assert "run      runs/tiny\n" in again.stderr


# Runs that are there already.


def test_a_finished_run_is_resumed_by_changing_nothing(trained_folder, cli: Cli):
    before = contents(trained_folder)
    answer = cli("--config", "tiny.yaml", "--resume", cwd=trained_folder)
    assert (answer.rc, answer.stdout) == (0, "")
    assert "finished at step 6 already" in answer.stderr
    assert "PyTorch" not in answer.stderr
    assert contents(trained_folder) == before


def test_a_finished_run_is_not_written_over(trained_folder, cli: Cli):
    before = contents(trained_folder)
    answer = cli("--config", "tiny.yaml", "run.dir=runs/tiny", cwd=trained_folder)
    line = one_line(answer, 2)
    assert line.startswith("run.dir=runs/tiny holds a run already")
    assert contents(trained_folder) == before


def unfinished(folder: Path) -> None:
    (folder / "runs/tiny/checkpoints/step-00000006.safetensors").unlink()


def test_an_unfinished_run_is_not_shadowed(trained_folder, cli: Cli):
    unfinished(trained_folder)
    before = contents(trained_folder)
    line = one_line(cli("--config", "tiny.yaml", cwd=trained_folder), 2)
    assert line.startswith(
        "runs/tiny holds an unfinished run of this config, at step 3. Add --resume"
    )
    assert contents(trained_folder) == before


def test_fresh_renames_only_once_the_start_is_sure(trained_folder, cli: Cli):
    unfinished(trained_folder)
    before = contents(trained_folder)
    shutil.move(trained_folder / "photos", trained_folder / "elsewhere")
    one_line(cli("--config", "tiny.yaml", "--fresh", cwd=trained_folder), 3)
    shutil.move(trained_folder / "elsewhere", trained_folder / "photos")
    assert contents(trained_folder) == before

    answer = cli("--config", "tiny.yaml", "--fresh", cwd=trained_folder)
    assert answer.rc == 0, answer.stderr
    assert "the old run is now runs/tiny-old" in answer.stderr
    after = contents(trained_folder)
    assert {name.replace("runs/tiny/", "runs/tiny-old/") for name in before} <= after.keys()
    assert "runs/tiny/checkpoints/step-00000003.safetensors" in after


def test_a_changed_setting_is_shown_refused_and_accepted_by_name(trained_folder, cli: Cli):
    unfinished(trained_folder)
    before = contents(trained_folder)
    change = ["--config", "tiny.yaml", "--resume", "optimizer.lr=0.005", "loss.label_smoothing=0.1"]
    answer = cli(*change, cwd=trained_folder)
    assert answer.rc == 2
    assert "\n  loss.label_smoothing: 0.0 -> 0.1\n  optimizer.lr: 0.01 -> 0.005\n" in answer.error
    accept = "--allow-config-change loss.label_smoothing --allow-config-change optimizer.lr"
    assert accept in answer.error

    answer = cli(*change, *accept.split()[:2], cwd=trained_folder)
    assert answer.rc == 2
    assert "smoothing" not in answer.error
    assert contents(trained_folder) == before

    answer = cli(*change, *accept.split(), cwd=trained_folder)
    assert answer.rc == 0, answer.stderr
    assert "resume   at step 3" in answer.stderr
    assert "lr: 0.005" in (trained_folder / "runs/tiny/config.yaml").read_text()


def test_another_class_count_on_resume(trained_folder, cli: Cli):
    before = contents(trained_folder / "runs")
    shutil.copytree(trained_folder / "photos/train/owl", trained_folder / "photos/train/pig")
    line = one_line(cli("--config", "tiny.yaml", "--resume", cwd=trained_folder), 2)
    assert line.startswith(
        "tiny.yaml:2 data.train: 4 classes, but the run in runs/tiny was trained on 3"
    )
    assert contents(trained_folder / "runs") == before


def test_other_images_on_resume(trained_folder, cli: Cli):
    before = contents(trained_folder / "runs")
    (trained_folder / "photos/train/owl/0.jpg").rename(trained_folder / "photos/train/owl/a.jpg")
    line = one_line(cli("--config", "tiny.yaml", "--resume", cwd=trained_folder), 3)
    assert line.startswith("tiny.yaml:2 data.train: the images are no longer those")
    assert contents(trained_folder / "runs") == before


def test_images_that_moved_are_the_same(trained_folder, cli: Cli):
    shutil.move(trained_folder / "photos", trained_folder / "pictures")
    moved = ["data.train=pictures/train", "data.val=pictures/val"]
    answer = cli("--config", "tiny.yaml", "--resume", *moved, cwd=trained_folder)
    assert (answer.rc, "finished at step 6" in answer.stderr) == (0, True), answer.stderr


def test_resume_where_no_checkpoint_verifies_stops(trained_folder, cli: Cli):
    folder = trained_folder / "runs/tiny/checkpoints"
    damage(folder / "step-00000003.safetensors")
    damage(folder / "step-00000006.safetensors")
    before = contents(trained_folder)
    answer = cli("--config", "tiny.yaml", "--resume", cwd=trained_folder)
    assert answer.rc == 4
    assert "step-00000003.safetensors: damaged" in answer.error
    assert "step-00000006.safetensors: damaged" in answer.error
    assert contents(trained_folder) == before


def test_resume_passes_over_a_damaged_checkpoint_and_names_it(trained_folder, cli: Cli):
    """The last one of a finished run, which would look finished by its header."""
    damage(trained_folder / "runs/tiny/checkpoints/step-00000006.safetensors")
    answer = cli("--config", "tiny.yaml", "--resume", cwd=trained_folder)
    assert answer.rc == 0, answer.stderr
    assert "step-00000006.safetensors: damaged" in answer.stderr
    assert "resume   at step 3" in answer.stderr
    assert "error    " not in answer.stderr
    answer = cli("--config", "tiny.yaml", "--resume", cwd=trained_folder)
    assert "finished at step 6 already" in answer.stderr


def test_resume_without_a_checkpoint_starts_at_0_and_a_longer_schedule_goes_on(
    tiny_folder, cli: Cli
):
    first = cli("--config", "tiny.yaml", "--resume", "schedule.epochs=1", cwd=tiny_folder)
    assert first.rc == 0, first.stderr
    assert "no checkpoint yet in runs/tiny: starting at step 0" in first.stderr
    longer = cli("--config", "tiny.yaml", "--resume", cwd=tiny_folder)
    assert longer.rc == 0, longer.stderr
    assert re.search(r"resume   at step 3; the learning rate goes on from [\d.e-]+", longer.stderr)
    names = [path.name for path in sorted((tiny_folder / "runs/tiny/checkpoints").iterdir())]
    assert names == ["step-00000003.safetensors", "step-00000006.safetensors"]


# A trained run, used.


def test_predict_with_photos_that_are_missing_or_no_photos(trained_folder, cli: Cli):
    before = contents(trained_folder / "runs")
    missing = cli("predict", "runs/tiny", "nope.jpg", cwd=trained_folder)
    assert one_line(missing, 3).startswith("no file 'nope.jpg'")

    (trained_folder / "notes.jpg").write_text("not a photo")
    Image.fromarray(np.full((40, 30), 90, np.uint8)).save(trained_folder / "gray.png")
    photos = ["photos/val/dog/0.jpg", "gray.png"]
    mixed = cli("predict", "runs/tiny", "notes.jpg", *photos, cwd=trained_folder)
    assert mixed.rc == 3
    assert mixed.error.startswith("notes.jpg: ")
    # The good ones are answered all the same.
    assert [line.split(": ")[0] for line in mixed.stdout.splitlines()] == photos
    assert contents(trained_folder / "runs") == before


def test_evaluate_names_what_it_lacks(trained_folder, cli: Cli):
    before = contents(trained_folder / "runs")
    unknown = cli("evaluate", "runs/tiny", "--checkpoint", "5", cwd=trained_folder)
    assert one_line(unknown, 2) == (
        "--checkpoint 5: runs/tiny has steps 3, 6. Give one of them, last or best."
    )
    no_checkpoint = cli("evaluate", "photos/val/dog/0.jpg", cwd=trained_folder)
    assert one_line(no_checkpoint, 2).startswith("photos/val/dog/0.jpg is no checkpoint. RUN is")

    shutil.move(trained_folder / "photos", trained_folder / "pictures")
    gone = cli("evaluate", "runs/tiny", cwd=trained_folder)
    line = one_line(gone, 3)
    assert line.startswith("no folder 'photos/val'")
    assert line.endswith("Pass --data FOLDER.")
    assert contents(trained_folder / "runs") == before


def test_another_network_cannot_be_accepted_on_resume(trained_folder, cli):
    change = ("model.aux_logits=false", "--allow-config-change", "model.aux_logits")
    answer = cli("--config", "tiny.yaml", "--resume", *change, cwd=trained_folder)
    assert answer.rc == 2
    assert "trains another network" in answer.error
    assert "model.aux_logits: True -> False" in answer.error


def test_a_shorter_schedule_is_refused_on_resume(trained_folder, cli):
    answer = cli("--config", "tiny.yaml", "--resume", "schedule.epochs=1", cwd=trained_folder)
    assert answer.rc == 2
    assert "schedule.epochs: 2 -> 1" in answer.error


def test_nothing_is_left_auto_in_a_run(trained_folder):
    assert "auto" not in (trained_folder / "runs/tiny/config.yaml").read_text()


# --- evaluation that is compiled -----------------------------------------------------------------


def test_a_short_evaluation_is_not_compiled(cli: Cli, trained_folder: Path) -> None:
    answer = cli("evaluate", "runs/tiny", "--json", cwd=trained_folder)
    assert answer.rc == 0
    assert "compile  no, below" in answer.stderr
    assert json.loads(answer.stdout)["seen"] == 9
    assert cli("evaluate", "runs/tiny", "--compile", "maybe", cwd=trained_folder).rc == 2


@pytest.mark.slow
def test_a_compiled_evaluation_gives_the_same(cli: Cli, trained_folder: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler here")
    plain, compiled = (
        json.loads(
            cli(
                *("evaluate", "runs/tiny", "--json", "--compile", choice),
                cwd=trained_folder,
                timeout=400,
            ).stdout
        )
        for choice in ("no", "yes")
    )
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert (compiled["top1"], compiled["seen"]) == (plain["top1"], plain["seen"])


def test_without_a_compiler_it_is_said_how_to_mend_it(
    cli: Cli, trained_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import torch._inductor.config

    monkeypatch.chdir(trained_folder)
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        assert main(["evaluate", "runs/tiny", "--compile", "yes"]) == 2
        error = capsys.readouterr().err.split("error    ")[1]
        assert error.startswith("--compile yes: nothing can be compiled here (")
        assert "No working C++ compiler" in error
        monkeypatch.setattr(evaluate_runs, "COMPILE_FROM", 1)
        assert main(["evaluate", "runs/tiny"]) == 0
    told = capsys.readouterr()
    assert "compile  no, nothing can be compiled here" in told.err
    assert "9 images" in told.out

"""`googlenet-train PHOTOS/`: from a bare folder of class folders to a trained run."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli, draw_photos

from googlenet_train import cli as commands
from googlenet_train.config.file import load
from googlenet_train.errors import ExitCode

QUICK = (
    "data.image_size=32",
    "data.workers=1",
    "optimizer.batch_size=8",
    "schedule.epochs=1",
    "device.threads=1",
)


@pytest.fixture
def pets(tmp_path, monkeypatch) -> Path:
    """A folder `pets` with twelve photos in each of three class folders, in the current folder."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "drawn", train=12, val=1)
    (tmp_path / "drawn/train").rename(tmp_path / "pets")
    shutil.rmtree(tmp_path / "drawn")
    return tmp_path / "pets"


@pytest.fixture
def asked(monkeypatch) -> list:
    """The settings that reach launch.prepare, which then finds the run finished."""
    calls: list = []
    monkeypatch.setattr(
        "googlenet_train.run.launch.prepare", lambda loaded, **_: calls.append(loaded)
    )
    return calls


@pytest.mark.parametrize(
    "words", [["pets"], ["pets/"], ["train", "./pets"], ["--resume", "pets"], ["pets", "--fresh"]]
)
def test_a_folder_stands_for_folder_yaml(words, pets, asked):
    assert commands.main([*words, "schedule.epochs=3"]) == 0
    [loaded] = asked
    same = load("folder.yaml", ["data.train=pets", "schedule.epochs=3"])
    assert loaded.config == same.config
    assert loaded.name == "pets"
    assert loaded.where("schedule.epochs") == "command line schedule.epochs"


@pytest.mark.parametrize("name", ["a: b #c", 'say "cheese"', "Kühe", "x=y", "1e-4", "null", "2024"])
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert commands.main([name]) == 0
    assert (asked[0].config.data.train, asked[0].name) == (name, name)


def test_a_folder_with_train_and_val_is_taken_as_both(pets, asked):
    shutil.copytree("pets", "both/train")
    shutil.copytree("pets", "both/val")
    assert commands.main(["both"]) == 0
    data = asked[0].config.data
    assert (data.train, data.val, asked[0].name) == ("both/train", "both/val", "both")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pest"], 2, "'pest' is no verb and no folder. Did you mean the folder 'pets'?"),
        (["pest/"], 3, "no folder 'pest/'; did you mean 'pets'?"),
        (["pets/cart"], 3, "no folder 'pets/cart'; did you mean 'pets/cat'?"),
        (["train", "nothing"], 3, "no folder 'nothing'"),
        (["pets/cat/0.jpg"], 2, "'pets/cat/0.jpg' is a file. If it is a config, pass --config"),
        (["pets", "pets/cat"], 2, "'pets' and 'pets/cat': give one folder"),
        (["--config", "folder.yaml", "pets"], 2, "the folder of the photos is data.train=pets"),
        (["pets", "data.train=pets"], 2, "data.train is given twice"),
        (["pets", "data.trian=pets"], 2, "did you mean data.train?"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, code, message, pets, capsys):
    assert commands.main(words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_settings_that_are_printed_can_be_pasted(pets, cli: Cli):
    (pets / "bird").mkdir()
    answer = cli("pets", "data.image_size=64", cwd=pets.parent)
    assert (answer.rc, "class folder 'bird' in 'pets' without a photo" in answer.error) == (3, True)
    printed = [line[2:] for line in answer.stderr.splitlines() if line.startswith("  ")]
    Path("pasted.yaml").write_text("\n".join(printed))
    same = load("folder.yaml", ["data.train=pets", "data.image_size=64"])
    assert load("pasted.yaml").config == same.config


def test_a_class_that_cannot_be_split_is_named(pets, cli: Cli):
    (pets / "bird").mkdir()
    shutil.copy(pets / "cat/0.jpg", pets / "bird")
    error = cli("pets", cwd=pets.parent).error
    assert error.startswith("command line data.train: too few photos to train on some and hold")
    assert "'bird' (photos: 1)" in error
    assert error.endswith("write data.val_fraction=0.")
    assert not Path("runs").exists()


def test_a_link_that_leads_nowhere_is_split_like_a_photo_and_left_out(pets, cli: Cli):
    (pets / "cat/gone.jpg").symlink_to("nowhere.jpg")
    (pets / "loose.jpg").write_bytes((pets / "cat/0.jpg").read_bytes())
    (pets / "dog/a.HEIC").touch()
    answer = cli("pets/", *QUICK, cwd=pets.parent)
    assert answer.rc == 0, answer.stderr
    with (pets.parent / "runs/pets/quarantine.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert "gone.jpg" in str(row)
    assert row["reason"] == "No such file or directory"
    assert "warning  1 photo lies beside the class folders, in no class: loose.jpg" in answer.stderr
    assert "warning  1 file is not read, for the ending: .heic (1)" in answer.stderr


def test_from_a_folder_to_a_prediction(pets, cli: Cli):
    shutil.copy(pets / "cat/0.jpg", pets / "dog/copy.jpg")
    answer = cli("pets/", *QUICK, cwd=pets.parent)
    assert answer.rc == 0, answer.stderr
    assert "the same photo stands in two classes" in answer.stderr
    assert ", held out of data.train (split.csv)" in answer.stderr
    run = pets.parent / "runs/pets"
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 37
    assert {row["split"] for row in rows if row["path"] in ("cat/0.jpg", "dog/copy.jpg")} in (
        {"train"},
        {"val"},
    )
    assert load(str(run / "config.yaml")).config.data.val is None

    # The same photos are held out when the run is evaluated afterwards.
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    evaluated = json.loads(cli("evaluate", "runs/pets", "--json", cwd=pets.parent).stdout)
    assert evaluated["seen"] == sum(row["split"] == "val" for row in rows)
    assert evaluated["top1"] == pytest.approx(logged["val_ema/top1"], abs=1e-3)
    assert evaluated["top1_macro"] == pytest.approx(logged["val_ema/top1_macro"], abs=1e-3)

    # Finished, with the same command; what would be another run is named.
    assert "finished at step" in cli("pets/", *QUICK, "--resume", cwd=pets.parent).stderr
    longer = [word.replace("epochs=1", "epochs=2") for word in QUICK]
    fraction = cli("pets/", *longer, "data.val_fraction=0.3", "--resume", cwd=pets.parent)
    assert (fraction.rc, "data.val_fraction: 0.2 -> 0.3" in fraction.error) == (2, True)
    (pets / "owl/3.jpg").rename(pets / "owl/33.jpg")
    changed = cli("pets/", *longer, "--resume", cwd=pets.parent)
    assert (changed.rc, changed.error.count("\n")) == (ExitCode.DATA, 0)
    assert "(1 added, 'owl/33.jpg'; 1 gone, 'owl/3.jpg')" in changed.error
    assert "model.init=runs/pets without --resume" in changed.error

    # Elsewhere too only the photos that were held out are evaluated.
    shutil.copytree(pets, pets.parent / "moved")
    elsewhere = cli("evaluate", "runs/pets", "--data", "moved", "--json", cwd=pets.parent)
    trained = len(rows) - evaluated["seen"]
    assert f"moved: {trained} of its 37 photos were trained on and are left out" in elsewhere.stderr
    assert json.loads(elsewhere.stdout)["top1"] == evaluated["top1"]

    # Who goes on with its weights and holds out others is warned.
    begun = ["model.init=runs/pets", "data.val_fraction=0.6", "optimizer.lr=1e-6", "run.dir=more"]
    leaking = cli("pets/", *QUICK, *begun, cwd=pets.parent)
    assert leaking.rc == 0, leaking.stderr
    assert "warning  runs/pets (model.init) was trained on " in leaking.stderr
    kept = cli("pets/", *QUICK, begun[0], "run.dir=same", cwd=pets.parent)
    assert "(model.init) was trained on " not in kept.stderr
    for checkpoint in pets.parent.rglob("*.safetensors"):
        checkpoint.unlink()


def test_no_run_among_the_photos(pets, cli: Cli):
    for words, folder in ((["pets", "run.dir=pets/run"], pets.parent), (["."], pets)):
        answer = cli(*words, *QUICK, cwd=folder)
        assert answer.rc == ExitCode.USAGE
        assert "lies in that of the photos (data.train)" in answer.error
        assert "run.dir=FOLDER" in answer.error
        assert sorted(path.name for path in pets.iterdir()) == ["cat", "dog", "owl"]


def test_photos_to_evaluate_on_that_are_trained_on_are_told(pets, cli: Cli):
    few = pets.parent / "few"
    (few / "cat").mkdir(parents=True)
    shutil.copy(pets / "cat/3.jpg", few / "cat/other-name.jpg")
    (pets / "dog/gone.jpg").symlink_to("nowhere")  # has no size to compare
    answer = cli("pets", *QUICK, "data.val=few", cwd=pets.parent)
    assert answer.rc == 0, answer.stderr
    assert "warning  1 of the 1 photos to evaluate on are also trained on" in answer.stderr
    assert "warning  no photos to evaluate on of 'dog', 'owl'" in answer.stderr
    for checkpoint in pets.parent.rglob("*.safetensors"):
        checkpoint.unlink()


@pytest.mark.slow
def test_a_split_run_goes_on_longer_with_the_same_split(pets, cli: Cli):
    assert cli("pets/", *QUICK, cwd=pets.parent).rc == 0
    split = pets.parent / "runs/pets/split.csv"
    before = split.read_bytes()
    longer = [word.replace("epochs=1", "epochs=2") for word in QUICK]
    answer = cli("pets/", *longer, "--resume", cwd=pets.parent)
    assert (answer.rc, "resume   at step 3" in answer.stderr) == (0, True)
    assert split.read_bytes() == before

    held_out = next(line.split(",")[0] for line in before.decode().split() if ",val," in line)
    (pets / held_out).rename(pets / f"{held_out}.jpg")
    noted = cli("evaluate", "runs/pets", cwd=pets.parent)
    assert "the photos are no longer those that the run was evaluated on" in noted.stderr
    for checkpoint in pets.parent.rglob("*.safetensors"):
        checkpoint.unlink()

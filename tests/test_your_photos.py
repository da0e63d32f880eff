"""docs/your-photos.md: every command in it runs, in its order, on a small folder of photos."""

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest

from googlenet_train import cli
from googlenet_train.config.file import shipped_configs

DOCUMENT = Path(__file__).parent.parent / "docs" / "your-photos.md"
SHARD = Path(cli.__file__).parent / "assets" / "clothing" / "train.tar"
A_CLASS = 8
QUICK = {"image_size": "32", "batch_size": "16", "epochs": "1"}


def commands() -> list[str]:
    """The lines of the document's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def desk(in_folder, monkeypatch) -> Path:
    """A current folder with what the document speaks of: eight shipped photos a class, one damaged.

    Its folder.yaml is the shipped one but for a smaller size, so that each command is run as it is
    written.
    """
    shutil.rmtree(in_folder / "photos")
    taken: dict[str, int] = {}
    with tarfile.open(SHARD) as tar:
        for member in tar:
            name = Path(member.name)
            number = taken[name.parts[0]] = taken.get(name.parts[0], 0) + 1
            if number <= A_CLASS + 2:
                folder = "photos" if number <= A_CLASS else "more-photos"
                place = in_folder / folder / name.parts[0] / name.name
                place.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(member)
                assert file is not None
                place.write_bytes(file.read())
    text = (shipped_configs() / "folder.yaml").read_text()
    for key, value in QUICK.items():
        text, count = re.subn(rf"(?m)^  {key}: \S+", f"  {key}: {value}", text)
        assert count == 1
    (in_folder / "folder.yaml").write_text(text)
    photos = sorted(str(p.relative_to("photos")) for p in Path("photos").rglob("*.jpg"))
    rows = [f"{path},{'a b' if i % 2 else 'c'}" for i, path in enumerate(photos)]
    (in_folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    shutil.copy(next(Path("photos/hat").iterdir()), "new-photo.jpg")
    shutil.copytree("more-photos/hat", "folder-of-new-photos")
    sorted(Path("photos/pants").iterdir())[3].write_text("a text file that is called .jpg")
    return in_folder


@pytest.mark.slow
def test_every_command_runs(desk, capsys):
    answers: dict[str, tuple[int, str, str]] = {}
    for command in commands():
        program, *words = shlex.split(command)
        assert program == "googlenet-train"
        code = cli.main(words)
        captured = capsys.readouterr()
        answers[command] = (code, captured.out, captured.err)
    bad = {command: answer for command, answer in answers.items() if answer[0] != 0}
    assert list(bad) == ["googlenet-train data verify --duplicates photos/"]  # it found the text

    def told(command: str) -> str:
        return "".join(answers[f"googlenet-train {command}"][1:])

    # What the document says of them.
    assert "held out of data.train (split.csv)" in told("photos/")
    assert "left out of" in told("photos/")
    assert "run      runs/photos\n" in told("photos/")
    assert "  data: {train: photos, " in told("photos/")
    assert "finished at step" in told("photos/ --resume")
    assert "mean of classes" in told("evaluate runs/photos")
    assert "hat" in told("predict runs/photos new-photo.jpg")
    rows = json.loads(
        answers["googlenet-train predict runs/photos --json folder-of-new-photos/"][1]
    )
    assert len(rows) == 2
    assert "held out" not in told("photos/ data.val=more-photos/")
    assert "2 classes" in told("photos/ data.labels=labels.csv")
    assert "left out of" not in told("photos/ data.exclude=runs/photos/quarantine.csv")
    assert "the run would start" in told("check photos/")
    for name in ("split.csv", "quarantine.csv", "train_batch.jpg", "val_predictions.jpg"):
        assert (desk / "runs/photos" / name).exists()

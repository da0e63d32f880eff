"""The whole job as a user runs it, and its accuracy counted a second, independent way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from independent_evaluation import top1

PACKAGE = Path(__file__).parents[1] / "googlenet_train"


def command(folder: Path, *arguments: str) -> str:
    # As for a user: with all cores, which the other tests do without.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "googlenet_train", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart_learns_and_is_evaluated_right(tmp_path: Path) -> None:
    command(tmp_path, "--config", "quickstart.yaml")
    rows = json.loads(
        command(tmp_path, "evaluate", "runs/quickstart", "--weights", "both", "--json")
    )
    ours = {row["weights"]: row["top1"] for row in rows}
    # 341 photos: one standard error is 2.6 points, and other processors round otherwise.
    assert ours["ema"] >= 62
    last = max((tmp_path / "runs/quickstart/checkpoints").glob("*.safetensors"))
    tar = PACKAGE / "assets/clothing/val.tar"
    assert top1(last, tar, "ema") == pytest.approx(ours["ema"], abs=1)
    assert top1(last, tar, "model") == pytest.approx(ours["raw"], abs=1)

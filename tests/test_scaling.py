"""The model of more GPUs, against sums done by hand and limits that are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from googlenet_train import cli
from googlenet_train.checks import scaling
from googlenet_train.checks.scaling import Cluster, Known, outlook, ring_all_reduce

FAST = Cluster(2_500, loader_images_per_second=600, bytes_per_image=110e3, storage=1e12)
RUN = {"batch_size": 4_096, "images": 1_281_167, "epochs": 90}


def test_a_ring_by_hand():
    """4 ranks, 100 MB: 6 messages of 25 MB pass each link, at 1 GB/s and 1 ms each."""
    assert ring_all_reduce(100e6, 4, 1e9, 1e-3) == pytest.approx(6 * (25e6 / 1e9 + 1e-3))
    assert ring_all_reduce(100e6, 1, 1e9, 1e-3) == 0


def test_the_bytes_are_those_of_the_network():
    from googlenet_train.model.googlenet import GoogLeNet

    parameters = sum(p.numel() for p in GoogLeNet(1000).parameters())
    assert parameters * 4 == scaling.GRADIENT_BYTES


def test_one_gpu_waits_for_no_one():
    alone = outlook(FAST, 1, **RUN)
    assert (alone.exposed, alone.bottleneck) == (0, "GPUs")
    assert alone.images_per_second == pytest.approx(2_500)
    steps = 1_281_167 // 4_096 * 90
    assert alone.hours == pytest.approx(steps * 4_096 / 2_500 / 3600, rel=0.01)


def test_efficiency_falls_and_never_exceeds_one():
    shares = [outlook(FAST, gpus, **RUN).efficiency for gpus in (1, 8, 64, 512)]
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share <= 1 for share in shares)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"link": 1e8}, "all-reduce"),
        ({"loader_images_per_second": 10}, "loader cores"),
        ({"storage": 1e8}, "storage"),
        ({}, "GPUs"),
    ],
)
def test_what_is_slow_is_named(change: dict[str, float], limit: str):
    found = outlook(replace(FAST, **change), 16, **RUN)
    assert found.bottleneck == limit
    if change:
        assert found.images_per_second < outlook(FAST, 16, **RUN).images_per_second


def test_the_interval_is_the_best_of_all():
    """Young's formula, against trying every interval: pauses, half an interval lost a failure."""
    cluster = replace(FAST, checkpoint_seconds=10, days_between_failures=1, restart_seconds=0)
    found = outlook(cluster, 32, **RUN)
    between = 86_400 / 4

    def lost(interval: float) -> float:
        return 10 / interval + interval / 2 / between

    best = min(range(60, 10_000), key=lost)
    assert found.checkpoint_minutes * 60 == pytest.approx(best, abs=2)
    assert found.lost == pytest.approx(lost(best), rel=1e-4)


def test_what_is_known_replaces_what_is_assumed():
    known = Known(images_per_second=1_000, link=8, storage=5, failures=2).added_to(FAST)
    assert (known.images_per_second, known.link, known.storage) == (1_000, 1e9, 5e6)
    assert known.days_between_failures == 2
    assert Known().added_to(FAST) == FAST


def test_check_prints_a_row_for_each_number_of_gpus(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["check", "--config", "tiny.yaml", "--gpus", "1,3,8", "--images-per-second", "2500"]
    assert cli.main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["gpus"] for row in answer["outlook"]] == [1, 8]  # 8 does not divide by 3
    assert answer["outlook"][0]["compute"] == pytest.approx(8 / 2500)
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("left out 3:") for line in lines)
    assert sum(line.endswith("GPUs") for line in lines) >= 1

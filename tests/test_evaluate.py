"""Evaluation: exact counts, one pass for many networks, crops, ensembles, interruption."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from googlenet_train import evaluate as evaluation
from googlenet_train.data.index import Index, open_source
from googlenet_train.evaluate import Setting, ensemble, evaluate, probabilities, with_weights
from googlenet_train.machine.signals import Signals
from googlenet_train.model.googlenet import GoogLeNet

COUNT = 13  # a prime: no batch divides it


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("evaluate")
    generator = np.random.default_rng(1)
    for i in range(COUNT):
        folder = root / f"class{i % 3}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return open_source(str(root))


@pytest.fixture(scope="module")
def model() -> GoogLeNet:
    torch.manual_seed(0)
    return GoogLeNet(3).eval()


@pytest.fixture
def setting() -> Setting:
    return Setting(
        device=torch.device("cpu"),
        precision="fp32",
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        batch_size=COUNT,
        workers=0,
    )


@pytest.mark.parametrize("batch_size", [1, 4, 12, 13, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_counts_are_exact_for_any_batch(
    index: Index, model: GoogLeNet, setting: Setting, batch_size: int, workers: int
) -> None:
    network = {"val": with_weights(model)}
    whole = evaluate(network, index, setting)
    changed = dataclasses.replace(setting, batch_size=batch_size, workers=workers)
    parts = evaluate(network, index, changed)
    assert whole is not None
    assert parts is not None
    assert parts["val"]["seen"] == COUNT
    assert parts["val"]["top1"] == whole["val"]["top1"]
    assert parts["val"]["loss"] == pytest.approx(whole["val"]["loss"], rel=1e-6)


def test_each_image_is_seen_once(
    index: Index, model: GoogLeNet, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = evaluation.evaluation_batch

    def noting(index: Index, chosen: range, *rest: int) -> object:
        seen.extend(chosen)
        return original(index, chosen, *rest)

    monkeypatch.setattr(evaluation, "evaluation_batch", noting)
    evaluate({"val": with_weights(model)}, index, dataclasses.replace(setting, batch_size=5))
    assert seen == list(range(COUNT))


def test_other_weights_are_evaluated_without_touching_the_network(
    index: Index, model: GoogLeNet, setting: Setting
) -> None:
    torch.manual_seed(7)
    other = GoogLeNet(3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    both = evaluate(
        {"own": with_weights(model), "other": with_weights(model, other.state_dict())},
        index,
        setting,
    )
    alone = evaluate({"other": with_weights(other)}, index, setting)
    assert both is not None
    assert alone is not None
    assert both["other"] == alone["other"]
    assert both["own"]["loss"] != both["other"]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_probabilities_are_averaged_over_views(model: GoogLeNet, setting: Setting) -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    single = probabilities(with_weights(model), images, setting)
    pairs = probabilities(with_weights(model), images, dataclasses.replace(setting, views=2))
    assert pairs.shape == (3, 3)
    torch.testing.assert_close(pairs, (single[0::2] + single[1::2]) / 2)


@pytest.mark.parametrize("views", [10, 144])
def test_many_crops(index: Index, model: GoogLeNet, setting: Setting, views: int) -> None:
    many = dataclasses.replace(setting, views=views, batch_size=4)
    results = evaluate({"val": with_weights(model)}, index, many)
    assert results is not None
    assert results["val"]["seen"] == COUNT


def test_an_ensemble_averages_probabilities(model: GoogLeNet, setting: Setting) -> None:
    torch.manual_seed(9)
    other = GoogLeNet(3).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    networks = [with_weights(model), with_weights(other)]
    mean = sum(probabilities(n, images, setting) for n in networks) / 2
    torch.testing.assert_close(probabilities(ensemble(networks), images, setting), mean)


def test_interruption_gives_no_result(index: Index, model: GoogLeNet, setting: Setting) -> None:
    network = {"val": with_weights(model)}
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert evaluate(network, index, setting, signals=signals) is None

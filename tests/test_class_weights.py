"""Weighted classes: torch's own loss, whole and in parts; the formula of auto; what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from steps import one_step
from torch import nn

from googlenet_train import cli, ema, numeric, optim
from googlenet_train.checkpoint import checkpoints, header
from googlenet_train.config import file as config_file
from googlenet_train.data.balance import balanced_weights, class_warnings
from googlenet_train.data.loader import Batch
from googlenet_train.errors import ExitCode
from googlenet_train.loss import googlenet_loss, total_weight
from googlenet_train.model.googlenet import GoogLeNetOutputs
from googlenet_train.run.launch import prepare
from googlenet_train.run.session import WINDOW

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
TARGETS = torch.tensor([0, 2, 1, 4, 2, 0])


def logits(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_torch_on_all_heads(smoothing):
    outputs = GoogLeNetOutputs(logits(1), logits(2), logits(3))
    losses = googlenet_loss(outputs, TARGETS, label_smoothing=smoothing, class_weights=WEIGHTS)
    criterion = nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=smoothing)
    main, aux1, aux2 = (criterion(head, TARGETS) for head in outputs)
    torch.testing.assert_close(losses.total, main + 0.3 * (aux1 + aux2))
    torch.testing.assert_close(losses.aux2, aux2)


def test_mixed_images_have_the_weights_of_both_classes():
    others, shares = torch.tensor([3, 0, 4, 1, 2, 1]), torch.tensor([0.5, 0.1, 0, 0.3, 0.2, 0.4])
    loss = googlenet_loss(logits(), TARGETS, second=(others, shares), class_weights=WEIGHTS).total
    log_p = logits().double().log_softmax(1)
    up = down = 0.0
    for row, (t, o, s) in enumerate(zip(TARGETS, others, shares.double(), strict=True)):
        up -= (1 - s) * WEIGHTS[t] * log_p[row, t] + s * WEIGHTS[o] * log_p[row, o]
        down += (1 - s) * WEIGHTS[t] + s * WEIGHTS[o]
    assert float(loss) == pytest.approx(float(up / down), rel=1e-6)
    total = total_weight(TARGETS, (others, shares), WEIGHTS)
    assert total == pytest.approx(float(down), rel=1e-6)
    unmixed = (others, torch.zeros(6))
    assert total_weight(TARGETS, unmixed, WEIGHTS) == float(WEIGHTS[TARGETS].sum())


class Linear(nn.Module):
    """Logits that a test can work out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 5)
        nn.init.normal_(self.fc.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


def stepped(cuts: list[int], weights: torch.Tensor | None) -> tuple[torch.Tensor, dict, float]:
    """The weights after one step on TARGETS cut into parts, the window, and torch's own loss."""
    model = Linear()
    pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    normal = (pixels.float() / 255 - 0.5) / 0.25
    own = nn.CrossEntropyLoss(weight=weights)(model(normal), TARGETS).item()
    window = torch.zeros(len(WINDOW))
    live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    parts = zip(pixels.to(torch.uint8).split(cuts), TARGETS.split(cuts), strict=True)
    one_step(
        model,
        optim.build_sgd(model, lr=0.1, momentum=0.0, weight_decay=0.0, fused=False),
        [Batch(images, labels) for images, labels in parts],
        window,
        numeric.new_guard(model, window, 0),
        {0.9: ema.start(live)},
        live,
        lr=0.1,
        std=(0.25, 0.25, 0.25),
        class_weights=weights,
    )
    return model.fc.weight.detach(), dict(zip(WINDOW, window.tolist(), strict=True)), own


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("cuts", [[6], [3, 3], [1, 2, 3]])
def test_parts_of_a_batch_add_up_to_the_whole(cuts, weights):
    after, window, own = stepped(cuts, weights)
    whole, _, _ = stepped([6], weights)
    torch.testing.assert_close(after, whole, atol=1e-6, rtol=1e-5)
    assert window["loss"] / window["weight"] == pytest.approx(own, rel=1e-5)
    assert window["seen"] == 6


def test_auto_is_the_inverse_frequency_with_mean_1_over_the_images():
    counts = np.array([112, 795, 20, 1])
    weights = balanced_weights(counts)
    assert weights == pytest.approx([928 / (4 * n) for n in counts], rel=1e-3)
    assert float(counts @ weights) / counts.sum() == pytest.approx(1, rel=1e-3)
    assert balanced_weights(np.array([4, 4])) == [1, 1]
    assert balanced_weights(np.array([4, 0]))[1] == 1


def make_uneven(folder) -> None:
    """photos/train with 60 cats, 10 dogs and 11 owls; val as it is."""
    for i in range(50):
        shutil.copy(
            folder / f"photos/train/cat/{i % 10}.jpg", folder / f"photos/train/cat/x{i}.jpg"
        )
    shutil.copy(folder / "photos/train/owl/0.jpg", folder / "photos/train/owl/x.jpg")


def test_uneven_classes_are_told_before_anything_runs(in_folder, capsys):
    make_uneven(in_folder)
    told = "'cat' has 6.0 times the photos of 'dog'"
    launch = prepare(config_file.load("tiny.yaml"), resume=False, fresh=False, allow=[])
    assert launch is not None
    assert told in capsys.readouterr().err
    assert launch.class_weights() is None

    loaded = config_file.load("tiny.yaml", ["loss.class_weights=auto"])
    launch = prepare(loaded, resume=False, fresh=False, allow=[])
    assert launch is not None
    assert told not in capsys.readouterr().err
    assert launch.config.loss.class_weights == {"cat": 0.45, "dog": 2.7, "owl": 2.455}
    assert launch.class_weights() == [0.45, 2.7, 2.455]

    (in_folder / "photos/train/classes.txt").write_text("cat Katze\ndog Hund\nowl Eule\n")
    loaded = config_file.load("tiny.yaml", ["loss.class_weights={Hund: 2, owl: 0.5}"])
    launch = prepare(loaded, resume=False, fresh=False, allow=[])
    assert launch is not None
    assert launch.class_weights() == [1, 2, 0.5]


def test_tiny_classes_are_named(in_folder):
    for path in sorted((in_folder / "photos/train/dog").iterdir())[1:]:
        path.unlink()
    launch = prepare(config_file.load("tiny.yaml"), resume=False, fresh=False, allow=[])
    assert launch is not None
    few, uneven = class_warnings(launch.train, launch.val, launch.sources.names, weighted=False)
    assert few.startswith("fewer than 2 photos to train on: 'dog' (1).")
    assert uneven.startswith("'cat' has 10.0 times the photos of 'dog'")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{cat: 1, dgo: 2}", "data.train has no class 'dgo'; did you mean 'dog'?"),
        ("{cat: -1}", "must be {name: a number > 0, ...} or auto or null, not -1."),
        ("[1, 2]", "must be {name: a number > 0, ...} or auto or null, not [1, 2]."),
        ("balanced", "must be {name: a number > 0, ...} or auto or null, not the text"),
        ("{cat: 1, cat: 2}", "stands twice"),
    ],
)
def test_weights_that_are_refused(in_folder, value, message, capsys):
    assert cli.main(["--config", "tiny.yaml", f"loss.class_weights={value}"]) == ExitCode.USAGE
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error    command line loss.class_weights: ")
    assert message in line


def test_a_weighted_run_and_its_names(in_folder, capsys):
    make_uneven(in_folder)
    (in_folder / "photos/train/classes.txt").write_text("cat Katze\ndog Hund\nowl Eule\n")
    words = ["--config", "tiny.yaml", "schedule.epochs=1", "loss.class_weights=auto"]
    assert cli.main(words) == 0
    assert "10 (Hund) to 60 (Katze)" in capsys.readouterr().err
    config = config_file.load("runs/tiny/config.yaml").config
    assert config.loss.class_weights == {"cat": 0.45, "dog": 2.7, "owl": 2.455}
    info = header(checkpoints(in_folder / "runs/tiny/checkpoints")[-1])
    assert info["classes"] == ["cat", "dog", "owl"]
    assert info["names"] == ["Katze", "Hund", "Eule"]
    logged = (in_folder / "runs/tiny/metrics.jsonl").read_text().splitlines()
    keys = {key for line in logged for key in json.loads(line)}
    assert {"val/top1_macro", "val_ema/top1_macro"} <= keys
    capsys.readouterr()
    assert cli.main(["predict", "runs/tiny", "photos/val/cat/0.jpg"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("Katze", "Hund", "Eule"))
    assert cli.main([*words, "--resume"]) == 0  # auto means what it was resolved to

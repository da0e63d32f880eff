"""The loss, held against the formula written out in float64."""

import numpy as np
import pytest
import torch

from googlenet_train.loss import googlenet_loss
from googlenet_train.model.googlenet import GoogLeNetOutputs

TARGETS = torch.tensor([0, 2, 1, 4, 2, 0])


@pytest.fixture
def outputs() -> GoogLeNetOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(6, 5, generator=generator) * scale for scale in (1, 2, 3))
    return GoogLeNetOutputs(*(part.requires_grad_() for part in logits))


def cross_entropy(logits: torch.Tensor, smoothing: float = 0.0) -> float:
    """-sum q log p, with q = (1 - s) on the target + s / K everywhere (Szegedy et al., 2016)."""
    z = logits.detach().numpy().astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    q = (1 - smoothing) * np.eye(z.shape[1])[TARGETS.numpy()] + smoothing / z.shape[1]
    return float(-(q * log_p).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("aux_weight", [0.3, 1.0])
def test_formula_with_heads(outputs, smoothing, aux_weight):
    losses = googlenet_loss(outputs, TARGETS, aux_weight=aux_weight, label_smoothing=smoothing)
    main, aux1, aux2 = (cross_entropy(logits, smoothing) for logits in outputs)
    assert losses.main.item() == pytest.approx(main, rel=1e-6)
    assert losses.aux1.item() == pytest.approx(aux1, rel=1e-6)
    assert losses.aux2.item() == pytest.approx(aux2, rel=1e-6)
    assert losses.total.item() == pytest.approx(main + aux_weight * (aux1 + aux2), rel=1e-6)


def test_defaults_are_the_papers(outputs):
    main, aux1, aux2 = (cross_entropy(logits) for logits in outputs)
    expected = main + 0.3 * (aux1 + aux2)
    assert googlenet_loss(outputs, TARGETS).total.item() == pytest.approx(expected, rel=1e-6)


def test_gradients(outputs):
    googlenet_loss(outputs, TARGETS, aux_weight=0.3, label_smoothing=0.1).total.backward()
    q = 0.9 * torch.eye(5)[TARGETS] + 0.1 / 5
    for logits, weight in zip(outputs, (1, 0.3, 0.3), strict=True):
        expected = weight * (logits.detach().softmax(1) - q) / len(TARGETS)
        torch.testing.assert_close(logits.grad, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_heads(outputs, smoothing):
    losses = googlenet_loss(outputs.main, TARGETS, label_smoothing=smoothing)
    expected = cross_entropy(outputs.main, smoothing)
    assert losses.total.item() == losses.main.item() == pytest.approx(expected, rel=1e-6)
    assert losses.aux1 is None
    assert losses.aux2 is None


def test_heads_without_weight_learn_nothing(outputs):
    losses = googlenet_loss(outputs, TARGETS, aux_weight=0.0)
    assert losses.total.item() == losses.main.item()
    assert losses.aux1.item() == pytest.approx(cross_entropy(outputs.aux1), rel=1e-6)  # still shown
    losses.total.backward()
    assert outputs.main.grad.any()
    assert not outputs.aux1.grad.any()
    assert not outputs.aux2.grad.any()


def test_bfloat16_logits_are_summed_in_float32(outputs):
    rounded = GoogLeNetOutputs(*(logits.detach().bfloat16() for logits in outputs))
    losses = googlenet_loss(rounded, TARGETS)
    assert losses.total.dtype == torch.float32
    main, aux1, aux2 = (cross_entropy(logits.float()) for logits in rounded)
    assert losses.total.item() == pytest.approx(main + 0.3 * (aux1 + aux2), rel=1e-6)

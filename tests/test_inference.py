"""The network for inference, held against the one that it is made of."""

import copy
import math

import pytest
import torch
from torch import Tensor

from googlenet_train.data.index import open_source
from googlenet_train.data.loader import evaluation_batch, to_device
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.model.inference import folded


def trained(variant: str = "paper") -> GoogLeNet:
    """A network in evaluation whose statistics are no longer the first ones."""
    torch.manual_seed(0)
    model = GoogLeNet(10, variant=variant).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "bn.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bn.bias")):
                tensor.normal_(0, 0.2)
    return model.eval()


def random_images(size: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.to(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["paper", "torchvision"])
@pytest.mark.parametrize("size", [32, 33, 47, 64, 97, 224])
def test_logits_equal_the_plain_networks(variant, size):
    model, images = trained(variant), random_images(size)
    expected = model(images)
    assert expected.std(0).min() > 0.01  # the images reach the logits
    torch.testing.assert_close(folded(model)(images), expected, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("size", [33, 64])
def test_bfloat16_is_as_far_from_float32_as_autocast_is(size):
    model, images = trained(), random_images(size, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(images).float()
    ours = folded(model, dtype=torch.bfloat16)(images.bfloat16())
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().mean() <= 1.5 * (autocast - exact).abs().mean()


@torch.inference_mode()
def test_other_weights_and_a_model_that_stays_as_it_is():
    model, images = trained(), random_images(64)
    before = copy.deepcopy(model.state_dict())
    other = GoogLeNet(10).eval()
    network = folded(model, other.state_dict())
    torch.testing.assert_close(network(images), other(images), rtol=1e-3, atol=1e-4)
    model.train()
    assert folded(model)(images).shape == (3, 10)  # of a model that is being trained
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.inference_mode()
@pytest.mark.parametrize("name", ["conv1.conv.weight", "inception4c.branch3.1.bn.running_mean"])
def test_a_broken_network_says_nan(name):
    model = trained()
    model.state_dict()[name][0] = math.nan
    for dtype in (torch.float32, torch.bfloat16):
        network = folded(model, dtype=dtype)
        assert network(random_images(64).to(dtype)).isnan().all()


@torch.inference_mode()
def test_top1_on_real_photos_is_the_plain_networks():
    index = open_source("shipped:clothing/val")
    batch = evaluation_batch(index, range(0, len(index), 3), 64)
    images = to_device(batch.images, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3)
    model = trained()
    assert torch.equal(folded(model)(images).argmax(1), model(images).argmax(1))
    assert len(model(images).argmax(1).unique()) > 1

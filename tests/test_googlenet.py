"""The network, held against torchvision's, the paper's Table 1 and the library's own pooling."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

from googlenet_train.loss import googlenet_loss
from googlenet_train.model import googlenet, pooling
from googlenet_train.model.googlenet import GoogLeNet, GoogLeNetOutputs
from googlenet_train.model.pooling import SurroundingMax, average_to_4x4

# Table 1 of the paper. Of each inception the channels of #1x1, #3x3 reduce, #3x3, #5x5 reduce,
# #5x5, pool proj. (Its last two columns do not follow from these.)
TABLE_1_SHAPES = {
    "conv1": (64, 112, 112),
    "maxpool1": (64, 56, 56),
    "conv3": (192, 56, 56),
    "maxpool2": (192, 28, 28),
    "inception3a": (256, 28, 28),
    "inception3b": (480, 28, 28),
    "maxpool3": (480, 14, 14),
    "inception4a": (512, 14, 14),
    "inception4b": (512, 14, 14),
    "inception4c": (512, 14, 14),
    "inception4d": (528, 14, 14),
    "inception4e": (832, 14, 14),
    "maxpool4": (832, 7, 7),
    "inception5a": (832, 7, 7),
    "inception5b": (1024, 7, 7),
    "dropout": (1024,),
    "fc": (1000,),
}
TABLE_1_INCEPTIONS = {
    "inception3a": [64, 96, 128, 16, 32, 32],
    "inception3b": [128, 128, 192, 32, 96, 64],
    "inception4a": [192, 96, 208, 16, 48, 64],
    "inception4b": [160, 112, 224, 24, 64, 64],
    "inception4c": [128, 128, 256, 24, 64, 64],
    "inception4d": [112, 144, 288, 32, 64, 64],
    "inception4e": [256, 160, 320, 32, 128, 128],
    "inception5a": [256, 160, 320, 32, 128, 128],
    "inception5b": [384, 192, 384, 48, 128, 128],
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Images this small give two threads nothing to share, and on a busy machine they wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torchvision_network(**kwargs) -> nn.Module:
    return torchvision.models.GoogLeNet(init_weights=False, **kwargs)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights and statistics under which every layer matters to the logits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, 0.5 / math.sqrt(module.in_features))
            module.bias.normal_(0, 0.2)


@pytest.fixture(scope="module")
def pair() -> tuple[GoogLeNet, nn.Module]:
    """Ours (variant "torchvision") and torchvision's, with the same weights, without dropout."""
    torch.manual_seed(0)
    ours = GoogLeNet(variant="torchvision", dropout=0.0, aux_dropout=0.0)
    randomise(ours)
    theirs = torchvision_network(dropout=0.0, dropout_aux=0.0)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Of the logits, as a share of their spread between images."""
    first, second = a(x), b(x)
    return float((first - second).abs().max() / second.std(0).mean())


# --- torchvision ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 33, 64, 224])
def test_logits_equal_torchvisions(pair, size):
    ours, theirs = pair
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    expected = theirs(x)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the images reach the logits
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


def test_a_3x3_last_pool_would_be_noticed(pair, images):
    ours, theirs = pair
    assert difference(ours, theirs, images) < 1e-4
    wrong = copy.deepcopy(ours)
    wrong.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    assert difference(wrong, theirs, images) > 0.1


def test_heads_equal_torchvisions_in_training(pair, images):
    ours, theirs = (copy.deepcopy(model).train() for model in pair)
    outputs, expected = ours(images), theirs(images)
    theirs_by_name = (expected.logits, expected.aux_logits1, expected.aux_logits2)
    for three in (outputs, theirs_by_name):
        torch.stack([*three]).square().sum().backward()
    for logits, wanted in zip(outputs, theirs_by_name, strict=True):
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert (outputs.aux1 - outputs.aux2).abs().max() > 0.1
    for name, tensor in theirs.state_dict().items():  # BatchNorm's statistics among them
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=1e-4, rtol=1e-4)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        scale = float(parameter.grad.abs().max())
        error = float((gradients[name] - parameter.grad).abs().max())
        assert error <= 1e-3 * scale, name


@pytest.mark.parametrize("aux_logits", [True, False])
def test_state_dict_keys_equal_torchvisions(aux_logits):
    theirs = torchvision_network(aux_logits=aux_logits, num_classes=7)
    ours = GoogLeNet(7, variant="torchvision", aux_logits=aux_logits)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(GoogLeNet(7, aux_logits=aux_logits).state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    names = [name for name, _ in theirs.named_parameters()]
    assert [name for name, _ in ours.named_parameters()] == names


def test_the_paper_differs_from_torchvision_in_two_places(pair, images):
    ours, _ = pair
    paper = GoogLeNet()
    old, new = ours.state_dict(), paper.state_dict()
    changed = [name for name in old if old[name].shape != new[name].shape]
    assert changed == [f"{block}.branch3.1.conv.weight" for block in TABLE_1_INCEPTIONS]
    # A 3x3 kernel in the middle of a 5x5 one of zeros is the same filter: the pool is what is left.
    padded = {
        name: nn.functional.pad(tensor, (1, 1, 1, 1)) if name in changed else tensor
        for name, tensor in old.items()
    }
    paper.load_state_dict(padded)
    paper.eval()
    assert difference(paper, ours, images) > 0.1
    paper.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
    assert difference(paper, ours, images) < 1e-4


# --- the paper -----------------------------------------------------------------------------------


def test_parameters_and_multiply_adds():
    model = GoogLeNet(aux_logits=False).eval()
    assert sum(p.numel() for p in model.parameters()) == 7_005_832
    assert sum(p.numel() for p in GoogLeNet().parameters()) == 13_385_816

    multiply_adds = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        per_output = module.weight[0].numel()  # inputs that one output is a weighted sum of
        multiply_adds.append(output.numel() * per_output)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    assert len(multiply_adds) == 58  # 57 convolutions and the classifier
    assert sum(multiply_adds) == 1_582_671_872


def test_shapes_equal_table_1():
    model = GoogLeNet(aux_logits=False).eval()
    shapes = {}
    for name, child in model.named_children():
        child.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    assert shapes.pop("conv2") == (64, 56, 56)  # Table 1 has it as "#3x3 reduce" of conv3
    assert shapes == TABLE_1_SHAPES
    assert list(shapes) == list(TABLE_1_SHAPES)


@pytest.mark.parametrize("name", TABLE_1_INCEPTIONS)
def test_inceptions_equal_table_1(name):
    block = getattr(GoogLeNet(1, aux_logits=False), name)
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == TABLE_1_INCEPTIONS[name]
    assert [conv.kernel_size[0] for conv in convolutions] == [1, 1, 3, 1, 5, 1]


# --- rewrites for speed --------------------------------------------------------------------------


def plain_form(model: GoogLeNet) -> GoogLeNet:
    """The same network block by block, as the paper draws it."""

    def block(self, x, relu=True):  # ReLU twice is ReLU
        return nn.functional.relu(self.bn(self.conv(x)))

    def inception(self, x):
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)

    for module in model.modules():
        if isinstance(module, googlenet.BasicConv2d):
            module.forward = block.__get__(module)
        if isinstance(module, googlenet.Inception):
            module.forward = inception.__get__(module)
    return model


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [64, 75])
def test_a_step_equals_the_plain_forms(size, memory_format):
    """Loss, all gradients and all statistics of one training pass."""
    torch.manual_seed(0)
    ours = GoogLeNet(10, dropout=0, aux_dropout=0).to(torch.float64)
    ours = ours.to(memory_format=memory_format)
    plain = plain_form(copy.deepcopy(ours))
    images = torch.randn(4, 3, size, size, dtype=torch.float64).to(memory_format=memory_format)
    for model in (ours, plain):
        sum(head.square().sum() for head in model(images)).backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)


def test_surrounding_max_in_bfloat16_equals_the_librarys():
    """The largest pixels exactly; of the gradient each sum is rounded once, to eight bits."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 11).relu().bfloat16().to(memory_format=torch.channels_last)
    ours, exact = x.clone().requires_grad_(), x.float().requires_grad_()
    pooled = SurroundingMax()(ours)
    expected = nn.functional.max_pool2d(exact, 3, 1, 1)
    assert torch.equal(pooled.float(), expected)
    gradient = torch.randn_like(pooled)
    pooled.backward(gradient)
    expected.backward(gradient.float())
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours.grad, exact.grad.bfloat16())
    with torch.no_grad():
        assert torch.equal(SurroundingMax()(x), nn.functional.max_pool2d(x, 3, 1, 1))


# --- the heads' average pool ---------------------------------------------------------------------


@pytest.mark.parametrize("height", range(2, 21))
def test_average_to_4x4_equals_the_librarys(height):
    generator = torch.Generator().manual_seed(height)
    for width in range(2, 21):
        ours = torch.randn(2, 3, height, width, generator=generator).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        weights = torch.randn(2, 3, 4, 4, generator=generator)
        expected = nn.functional.adaptive_avg_pool2d(theirs, 4)
        pooled = average_to_4x4(ours)
        torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)
        (pooled * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)


def test_average_to_4x4_keeps_channels_last():
    x = torch.randn(2, 8, 14, 14).to(memory_format=torch.channels_last)
    pooled = average_to_4x4(x)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, average_to_4x4(x.contiguous()), atol=1e-6, rtol=0)


def test_average_to_4x4_first_used_in_evaluation_serves_training():
    pooling._averaging_matrix.cache_clear()
    pooling._averaging_matrix_2d.cache_clear()
    with torch.inference_mode():
        average_to_4x4(torch.randn(1, 2, 9, 9))
    x = torch.randn(1, 2, 9, 9, requires_grad=True)
    average_to_4x4(x).sum().backward()
    assert x.grad is not None


# --- behaviour -----------------------------------------------------------------------------------


@torch.no_grad()
def test_what_it_returns(images):
    model = GoogLeNet(7)
    outputs = model(images)
    assert isinstance(outputs, GoogLeNetOutputs)
    assert outputs._fields == ("main", "aux1", "aux2")
    assert [tuple(logits.shape) for logits in outputs] == [(4, 7)] * 3
    assert isinstance(model(images, heads=False), Tensor)

    model.eval()
    plain, asked = model(images), model(images, heads=True)
    assert isinstance(plain, Tensor)
    assert isinstance(asked, GoogLeNetOutputs)
    assert torch.equal(asked.main, plain)

    headless = GoogLeNet(7, aux_logits=False)
    assert isinstance(headless(images), Tensor)
    assert isinstance(headless(images, heads=True), Tensor)


@torch.no_grad()
def test_aux1_reads_4a_and_aux2_reads_4d(images):
    model = GoogLeNet(7).eval()
    seen = {}
    for name in ("inception4a", "inception4d"):
        getattr(model, name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    outputs = model(images, heads=True)
    assert torch.equal(outputs.aux1, model.aux1(seen["inception4a"]))
    assert torch.equal(outputs.aux2, model.aux2(seen["inception4d"]))


@torch.no_grad()
@pytest.mark.parametrize("where", ["main", "aux"])
def test_each_dropout_reaches_its_classifier(images, where):
    # With everything dropped a classifier has its bias, 0, left.
    dropout, aux_dropout = (1.0, 0.0) if where == "main" else (0.0, 1.0)
    outputs = GoogLeNet(7, dropout=dropout, aux_dropout=aux_dropout)(images)
    zero = [bool((logits == 0).all()) for logits in outputs]
    assert zero == [where == "main", where == "aux", where == "aux"]


def test_one_step_moves_every_parameter(images):
    torch.manual_seed(0)
    model = GoogLeNet(7)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = googlenet_loss(model(images), torch.tensor([0, 3, 6, 3])).total
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    optimizer.step()
    unmoved = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_any_number_of_classes(images, num_classes):
    outputs = GoogLeNet(num_classes)(images)
    assert [tuple(logits.shape) for logits in outputs] == [(4, num_classes)] * 3


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (33, 33), (64, 64), (40, 97), (224, 224)], ids=str)
def test_image_sizes(shape):
    model = GoogLeNet(5)
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    for logits in (*model(x), model.eval()(x)):
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()


def test_initialisation():
    torch.manual_seed(0)
    for name, module in GoogLeNet().named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean)), name
            assert torch.equal(module.running_var, torch.ones_like(module.running_var)), name
            assert module.eps == 0.001
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        expected = 0.01
        if isinstance(module, nn.Conv2d):
            assert module.bias is None, name
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
        else:
            assert not module.bias.any(), name
        weight = module.weight.detach().double()
        count = weight.numel()
        # Five standard errors of a normal sample's deviation and mean.
        assert abs(float(weight.std()) / expected - 1) < 5 / math.sqrt(2 * count), name
        assert abs(float(weight.mean())) < 5 * expected / math.sqrt(count), name


@torch.no_grad()
def test_channels_last_gives_the_same_values(pair, images):
    model = copy.deepcopy(pair[0])
    expected = model(images, heads=True)
    model.to(memory_format=torch.channels_last)
    outputs = model(images.to(memory_format=torch.channels_last), heads=True)
    for logits, plain in zip(outputs, expected, strict=True):
        # Not closer: the library sums in another order, layer upon layer.
        assert (logits - plain).abs().max() < 1e-4 * plain.abs().max()


def test_bfloat16_autocast(pair, images):
    model = copy.deepcopy(pair[0]).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
    assert [logits.dtype for logits in outputs] == [torch.bfloat16] * 3
    for logits, plain in zip(outputs, model(images), strict=True):
        correlation = torch.corrcoef(torch.stack([logits.flatten().float(), plain.flatten()]))
        assert correlation[0, 1] > 0.95
    googlenet_loss(outputs, torch.tensor([0, 3, 6, 3])).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("variant", ["Paper", "v3", ""])
def test_unknown_variant(variant):
    with pytest.raises(ValueError, match="variant must be 'paper' or 'torchvision'"):
        GoogLeNet(variant=variant)

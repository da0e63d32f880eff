"""Training with torch.compile: the same network, compiled once for each size of the images."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import copy_run
from ranks import on_ranks
from safetensors.torch import load_file
from torch import nn

from googlenet_train import cli, compiled, numeric
from googlenet_train.checkpoint import checkpoints
from googlenet_train.errors import ExitCode
from googlenet_train.model.googlenet import GoogLeNet

RATES = {"train/images_per_second", "train/data_wait"}


def _can_compile() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


@pytest.fixture
def compiler() -> None:
    if not _can_compile():
        pytest.skip("there is no C++ compiler here")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Empty at first, so that really something is compiled."""
    return str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture
def graphs(cache: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many graphs have been compiled."""
    import torch._dynamo

    def count() -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield count
    torch._dynamo.reset()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * size)
    return torch.randn(count, 3, size, size, generator=generator)


def with_backend(compile: Callable, backend: str, call: Callable, **named: object) -> Callable:
    """torch.compile without its slow end, the C++ compiler."""
    return compile(call, dynamic=named["dynamic"], backend=backend)


def test_it_compiles_each_size_once_and_for_whole_batches_alone(graphs, monkeypatch):
    """A shape that became variable would save the third: then a step depends on those before."""
    monkeypatch.setattr(torch, "compile", partial(with_backend, torch.compile, "eager"))
    network, plain = compiled.Compiled(small(), 8, deterministic=True), small()
    for count, size in [(8, 16), (7, 16), (6, 16), (8, 24), (5, 24), (8, 16), (8, 20), (8, 24)]:
        outputs = [net(images(count, size)) for net in (network, plain)]
        for output in outputs:
            torch.autograd.backward(output.square().sum())
        assert torch.equal(*outputs)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert graphs() == 3


def test_warming_up_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    model = small()
    network = compiled.Compiled(model, 8, deterministic=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    guard = numeric.new_guard(model, torch.zeros(9), 0)
    compiled.warm_up(network, guard, images(8, 16), "fp32")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- a run ---------------------------------------------------------------------------------------


def first_layers(self, x, *, heads=None):
    """GoogLeNet's beginning and end: the whole takes minutes to compile on a processor."""
    x = self.maxpool1(self.conv1(x))
    return self.fc(self.dropout(x.mean((2, 3)).repeat(1, 16)))


def run(folder: str, *words: str) -> int:
    settings = ("model.aux_logits=false", "ema.decays=[]", "log.every_steps=1")
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *settings, *words])


def final(folder: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(Path(folder, "checkpoints"))[-1])


def logged(folder: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_run_resumes_to_the_bit(in_folder, graphs, monkeypatch, capsys):
    monkeypatch.setattr(GoogLeNet, "forward", first_layers)
    assert run("whole", "device.compile=true") == 0
    assert graphs() == 1  # before the first step, which needs no other
    copy_run(Path("whole"), Path("killed"), 3)
    capsys.readouterr()
    assert run("killed", "device.compile=true", "--resume") == 0
    assert "resume   at step 3" in capsys.readouterr().err
    whole, again = final("whole"), final("killed")
    assert {f"model/{name}" for name in GoogLeNet(3, aux_logits=False).state_dict()} <= whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert logged("killed") == logged("whole")

    copy_run(Path("whole"), Path("other"), 3)
    assert run("other", "--resume") == ExitCode.USAGE
    assert run("other", "--resume", "--allow-config-change", "device.compile") == 0
    assert "compiled was True and is False" in capsys.readouterr().err


def test_without_a_compiler_it_says_so_before_step_0(in_folder, graphs, monkeypatch, capsys):
    import torch._inductor.config

    monkeypatch.setattr(GoogLeNet, "forward", first_layers)
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        assert run("none", "device.compile=true") == ExitCode.USAGE
    error = capsys.readouterr().err.split("error    ")[1]
    assert error.startswith("device.compile: true, but nothing can be compiled here (")
    assert "No working C++ compiler" in error
    assert not Path("none/metrics.jsonl").exists() or logged("none") == []


RANKS = """
import json, torch
from torch import nn
from googlenet_train import compiled, distributed, numeric, optim, parallel
from googlenet_train.data.loader import Batch
from test_precision import Bench

def steps(compile, accumulate):
    bench = Bench("fp32")
    network = bench.model
    if compile:
        network = compiled.Compiled(network, 8, deterministic=True)
    network = parallel.spread(network, bench.guard, torch.device("cpu"), 8, accumulate)
    if compile:
        layout = torch.channels_last
        pixels = torch.zeros(8, 3, 8, 8).contiguous(memory_format=layout)
        compiled.warm_up(network, bench.guard, pixels, "fp32")
    bench.model, model = network, bench.model
    for number in range(2):
        bench.step(number, count=32)
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()

with distributed.group(100):
    results = [steps(compile, 2) for compile in (True, False)]
    everyone = distributed.gather(results)
    if distributed.rank() == 0:
        print(json.dumps(everyone))
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("compiler")
def test_on_two_ranks(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache)
    done = on_ranks(2, RANKS, tmp_path)
    assert done.codes == [0, 0], done.stderr
    one, other = json.loads(done.stdout.splitlines()[-1])
    assert one == other
    translated, plain = map(torch.tensor, one)
    torch.testing.assert_close(translated, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_whole_network_is_one_graph(graphs, monkeypatch):
    """In bfloat16, where it has a gradient of its own; its last bit may be another one."""
    import torch._dynamo

    model = GoogLeNet(3, dropout=0, aux_dropout=0).to(memory_format=torch.channels_last)
    pixels = images(4, 32).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch, "compile", partial(with_backend, torch.compile, "aot_eager"))
    translated = compiled.Compiled(model, 4, deterministic=True)
    gradients = []
    for network in (model, translated):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(pixels)
        torch.autograd.backward(sum(head.float().square().mean() for head in outputs))
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    assert graphs() == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    length, apart = (
        torch.nn.utils.get_total_norm(part).item()
        for part in (gradients[0], [a - b for a, b in zip(*gradients, strict=True)])
    )
    assert length > 0
    assert apart < 0.05 * length

"""Half precision: what auto takes, and float16's loss scale, which only the device knows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import copy_run
from ranks import on_ranks
from safetensors.torch import load_file
from steps import StepBench
from torch import nn

import googlenet_train.train as training
from googlenet_train import checkpoint, cli, loss_scale
from googlenet_train.data.loader import Batch
from googlenet_train.machine import device as devices

NAN, INF = float("nan"), float("inf")
RATES = {"train/images_per_second", "train/data_wait"}


# --- what auto takes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability", "fast"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), ("bf16", "fp16")),
        ("NVIDIA A100-SXM4-40GB", (8, 0), ("bf16", "fp16")),
        ("Tesla T4", (7, 5), ("fp16",)),
        ("Quadro RTX 6000", (7, 5), ("fp16",)),
        ("Tesla V100-SXM2-16GB", (7, 0), ("fp16",)),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), ()),
        ("Quadro T1000", (7, 5), ()),
        ("Tesla P100-PCIE-16GB", (6, 0), ()),
    ],
)
def test_auto_asks_what_a_gpu_is_good_at(monkeypatch, name, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert devices.native_precisions(torch.device("cuda", 0)) == fast
    assert devices.good_precision(torch.device("cuda", 0)) == (*fast, "fp32")[0]


@pytest.mark.parametrize(
    ("native", "seconds", "good"),
    [
        (True, 0.1, "bf16"),
        (True, 1.7, "fp32"),  # AVX-512's own, where AMX is kept back
        (False, 0.1, "fp32"),
    ],
)
def test_auto_tries_what_a_cpu_is_good_at(monkeypatch, native, seconds, good):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    took = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(devices, "_seconds_of_convolution", took.__getitem__)
    cpu = torch.device("cpu")
    assert devices.good_precision(cpu) == good
    slow = [p for p in ("fp32", "bf16", "fp16") if devices.emulated(p, cpu)]
    assert slow == (["fp16"] if native else ["bf16", "fp16"])


@pytest.mark.skipif(
    not devices.native_precisions(torch.device("cpu")), reason="this processor has no bfloat16"
)
def test_where_its_instructions_are_kept_back_auto_is_float32():
    """oneDNN is told to do without them, as where a virtual machine hides them."""
    ask = (
        "import torch; from googlenet_train.machine import device;"
        "print(device.good_precision(torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "fp32\n"


def test_auto_on_a_mac():
    assert devices.good_precision(torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast(precision, dtype):
    with devices.autocast(torch.device("cpu"), precision):
        assert nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_on_a_gpu_float32_is_tf32_however_one_asks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        devices.prepare(torch.device("cuda", 0))
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(before)


# --- the factor ----------------------------------------------------------------------------------


def factors(scale: loss_scale.LossScale, overflows: list[bool]) -> list[float]:
    seen = []
    for overflow in overflows:
        loss_scale.update(scale, torch.tensor(overflow), torch.tensor(overflow))
        seen.append(float(scale.factor))
    return seen


def test_it_moves_as_pytorchs_own(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    monkeypatch.setattr(loss_scale, "MOST", 2.0**60)
    generator = torch.Generator().manual_seed(0)
    overflows = (torch.rand(300, generator=generator) < 0.2).tolist()
    factor, growth = torch.tensor(loss_scale.FIRST), torch.tensor(0, dtype=torch.int32)
    theirs = []
    for overflow in overflows:
        torch._amp_update_scale_(factor, growth, torch.tensor(float(overflow)), 2.0, 0.5, 3)
        theirs.append(float(factor))
    assert factors(loss_scale.new(torch.device("cpu")), overflows) == theirs
    assert len(set(theirs)) >= 10


def test_it_ends_at_both_ends(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 1)
    scale = loss_scale.new(torch.device("cpu"))
    assert factors(scale, [False] * 30)[-1] == loss_scale.MOST
    assert factors(scale, [True] * 30)[-1] == loss_scale.LEAST


# --- one step ------------------------------------------------------------------------------------


class Bench(StepBench):
    """Of a small network that really computes in float16 on the CPU."""

    def __init__(self, precision: str = "fp16", limit: int = 0, fused: bool = True) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
        super().__init__(model, lr=0.1, precision=precision, limit=limit, fused=fused)

    def step(self, number: int, **settings: object) -> None:
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
        batch = Batch(images, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
        self.take([batch, batch], **{"step": number} | settings)

    @property
    def factor(self) -> float:
        assert self.guard.scale is not None
        return float(self.guard.scale.factor)

    def set_factor(self, value: float) -> None:
        assert self.guard.scale is not None
        self.guard.scale.factor.fill_(value)

    def overflow_at_last(self) -> None:
        """From now on the last layer's gradient is infinite."""
        self.model[-1].bias.register_hook(lambda gradient: gradient * INF)

    def state(self) -> bytes:
        """The bits of all that a step may change, but for the scale."""
        momenta = [slot["momentum_buffer"] for slot in self.optimizer.state.values()]
        tensors = [*self.live.values(), *self.averages[0.9].values(), *momenta, self.window]
        return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_float16_learns_what_float32_learns(clip_norm):
    """Also where gradients are clipped: at their own norm, not at that of the scaled ones."""
    half, single = Bench("fp16"), Bench("fp32")
    for number in range(3):
        for bench in (half, single):
            bench.step(number, clip_norm=clip_norm)
    assert half.factor == loss_scale.FIRST
    torch.testing.assert_close(half.window, single.window, rtol=2e-2, atol=2e-3)
    start = Bench().live
    for name, tensor in single.live.items():
        if tensor.is_floating_point():
            moved = (tensor - start[name]).abs().max()
            assert (half.live[name] - tensor).abs().max() <= 0.03 * moved + 1e-5, name


def test_small_gradients_need_it(monkeypatch):
    """A gradient of 1e-9 is lost in float16, and is not where the loss is scaled."""
    weight = nn.Parameter(torch.ones(4, 4))
    for factor, lost in ((1.0, True), (loss_scale.FIRST, False)):
        weight.grad = None
        with devices.autocast(torch.device("cpu"), "fp16"):
            output = nn.functional.linear(torch.ones(1, 4), weight)
        torch.autograd.backward(output.float().sum() * 1e-9 * factor)
        assert weight.grad is not None
        assert (weight.grad.abs().max() == 0) == lost


@pytest.mark.parametrize("fused", [True, False])
def test_an_overflow_changes_the_scale_and_nothing_else(fused):
    bench = Bench(fused=fused)
    bench.step(0)
    bench.set_factor(2.0**24)
    before = bench.state()
    bench.step(1)
    assert bench.state() == before
    assert bench.factor == 2.0**23
    assert bench.guard.counts.tolist() == [0, 0, -1]
    bench.set_factor(2.0**10)
    bench.step(2)
    assert bench.state() != before
    assert bench.guard.scale.good.item() == 1


def test_at_its_floor_an_overflow_is_a_bad_step():
    bench = Bench()
    bench.set_factor(4.0)
    bench.overflow_at_last()
    before = bench.state()
    for number, factor in enumerate((2.0, 1.0)):
        bench.step(number)
        assert bench.factor == factor
        assert bench.guard.counts.tolist() == [0, 0, -1]
    bench.step(2)
    assert bench.guard.counts.tolist() == [0, 0, 2]
    assert bench.guard.values[-1] == INF  # the norm, for the message
    assert bench.state() == before


def bad_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.to_device
    monkeypatch.setattr(training, "to_device", lambda images, *rest: real(images, *rest) * NAN)


def test_a_loss_that_is_not_finite_is_no_matter_of_scale(monkeypatch):
    bench = Bench(limit=1)
    bench.step(0)
    before = bench.state()
    with monkeypatch.context() as poisoned:
        bad_pixels(poisoned)
        bench.step(1)
    assert bench.state() == before
    assert (bench.factor, bench.guard.scale.good.item()) == (loss_scale.FIRST, 1)
    assert bench.guard.counts.tolist() == [1, 1, -1]
    bench.set_factor(2.0**24)
    bench.step(2)  # an overflow neither adds to the row of bad steps nor ends it
    assert bench.guard.counts.tolist() == [1, 1, -1]
    bad_pixels(monkeypatch)
    bench.step(3)
    assert bench.guard.counts.tolist() == [1, 1, 3]
    bench.step(4)
    assert (bench.factor, bench.state()) == (2.0**23, before)  # after the fatal step all stands


RANKS = """
import json, torch
from googlenet_train import distributed, parallel
from test_precision import Bench

with distributed.group(20):
    bench = Bench()
    if distributed.rank() == 1:
        bench.overflow_at_last()
    bench.model = parallel.spread(bench.model, bench.guard, torch.device("cpu"), 8, 2)
    before = bench.state()
    bench.step(0, count=32)
    same = bench.state() == before
    everyone = distributed.gather((bench.factor, bench.guard.counts.tolist(), same))
    if distributed.rank() == 0:
        print(json.dumps(everyone))
"""


def test_ranks_agree_on_an_overflow_of_one(tmp_path: Path):
    done = on_ranks(2, RANKS, tmp_path)
    assert done.codes == [0, 0], done.stderr
    one, other = json.loads(done.stdout.splitlines()[-1])
    assert one == other == [loss_scale.FIRST / 2, [0, 0, -1], True]


# --- a run ---------------------------------------------------------------------------------------

# 3 steps an epoch, each saved at its end.
SETTINGS = (
    "device.precision=fp16",
    "model.aux_logits=false",
    "ema.decays=[]",
    "data.val=null",
    "data.val_fraction=0",
    "log.every_steps=2",
)


@pytest.fixture
def overflowing(monkeypatch, in_folder) -> set[int]:
    """In the folder of tiny.yaml; in the steps of this set gradients overflow.

    The convolutions stay in float32: in float16 a processor takes seconds a step.
    """
    steps: set[int] = set()
    train_step = training.train_step

    def step(model, *rest, **settings):
        hooks = []
        if settings["step"] in steps:
            hooks.append(model.fc.bias.register_hook(lambda gradient: gradient * INF))
        train_step(model, *rest, **settings)
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(training, "train_step", step)
    monkeypatch.setattr(devices, "autocast", lambda *_: torch.autocast("cpu", enabled=False))
    return steps


def run(folder: str, *words: str) -> int:
    given = {word.split("=")[0] for word in words}
    settings = [setting for setting in SETTINGS if setting.split("=")[0] not in given]
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *settings, *words])


def state(folder: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoint_path(Path(folder, "checkpoints"), step))


def logged(folder: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def test_the_scale_is_logged_saved_and_resumed(overflowing, monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    overflowing |= {1}
    assert run("whole") == 0
    end = state("whole", 6)
    assert float(end["loss_scale/factor"]) == 2.0**16  # halved once, and doubled after three
    assert end["loss_scale/good"].item() == 1
    assert [line["train/loss_scale"] for line in logged("whole")] == [2.0**15, 2.0**15, 2.0**16]
    copy_run(Path("whole"), Path("killed"), 3)
    assert run("killed", "--resume") == 0
    again = state("killed", 6)
    assert again.keys() == end.keys()
    assert [name for name in end if not torch.equal(end[name], again[name])] == []
    assert logged("killed") == logged("whole")

    # A checkpoint without it, of another precision or an older version, begins with the first one.
    copy_run(Path("whole"), Path("old"), 3)
    path = checkpoint.checkpoint_path(Path("old/checkpoints"), 3)
    old = checkpoint.load(path)
    old.loss_scale = {}
    path.unlink()
    checkpoint.save(path.parent, old)
    assert run("old", "--resume") == 0
    assert float(state("old", 6)["loss_scale/factor"]) == 2 * loss_scale.FIRST


def test_at_the_floor_a_run_stops_and_says_what_to_do(overflowing, monkeypatch, capsys):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0)
    overflowing |= {1, 2, 3}
    assert run("bad") == 5
    message = capsys.readouterr().err
    assert "step 3: the loss is 0." in message or "step 3: the loss is 1." in message
    assert "norm inf" in message
    assert "device.precision=fp32" in message


def test_other_precisions_have_no_scale(overflowing):
    assert run("single", "device.precision=fp32", "schedule.epochs=1") == 0
    assert not any(name.startswith("loss_scale") for name in state("single", 3))
    assert all("train/loss_scale" not in line for line in logged("single"))


@pytest.mark.slow
def test_a_run_that_really_computes_in_float16(in_folder, monkeypatch):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**8)  # a fresh network's gradients are large
    assert run("half", "schedule.epochs=1", "data.val=photos/val", "log.every_steps=1") == 0
    assert run("single", "schedule.epochs=1", "log.every_steps=1", "device.precision=fp32") == 0
    half, single = logged("half"), logged("single")
    assert [line["train/loss_scale"] for line in half if "train/lr" in line] == [2.0**8] * 3
    for name, tolerance in (("train/loss", 0.03), ("train/grad_norm", 0.2)):
        assert half[0][name] == pytest.approx(single[0][name], rel=tolerance)
        assert half[0][name] != single[0][name]
    assert half[-1]["val/loss"] < 100

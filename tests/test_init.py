"""Weights to start from, held against torchvision's own network; what is frozen stays as it was."""

import copy
import hashlib
import pickle
import shutil
import warnings
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from test_googlenet import randomise
from test_numeric import Bench

from googlenet_train import checkpoint, cli, optim
from googlenet_train.config import file as config_file
from googlenet_train.data.loader import to_device
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.model.googlenet import HEAD, GoogLeNet
from googlenet_train.run import launch, pretrained

PETS = ("cat", "dog", "owl")
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def theirs(num_classes: int = 3, **kwargs) -> torch.nn.Module:
    """Torchvision's own network, with weights under which every layer matters; not to be changed.

    The same weights wherever the shapes are the same.
    """
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=num_classes, init_weights=False, **kwargs)
    randomise(model)
    return model.eval()


@cache
def _ours(num_classes: int, **kwargs) -> GoogLeNet:
    torch.manual_seed(1)
    return GoogLeNet(num_classes, **{"variant": "torchvision", **kwargs})


def ours(num_classes: int = 3, **kwargs) -> GoogLeNet:
    """Our network with fresh weights, always the same ones."""
    return copy.deepcopy(_ours(num_classes, **kwargs))


def same(one: torch.nn.Module, other: torch.nn.Module, prefix: str = "") -> bool:
    mine, its = one.state_dict(), other.state_dict()
    names = [name for name in its if name.startswith(prefix)]
    assert names
    return all(torch.equal(mine[name], its[name]) for name in names)


class Payload:
    """What unpickling would run: it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_payload_is_refused_and_not_run(in_folder, capsys, form):
    canary = Path("canary").absolute()
    content = {"fc.weight": torch.zeros(3, 1024), "fc.bias": Payload(canary)}
    if form == "pickle":
        Path("evil.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, "evil.pth", _use_new_zipfile_serialization=form == "zip")
    assert cli.main(["--config", "tiny.yaml", "model.init=evil.pth"]) == ExitCode.CHECKPOINT
    told = capsys.readouterr().err
    assert told.count("error    ") == 1
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last.startswith("error    model.init: evil.pth: no plain state dict: it could run code")
    assert not canary.exists()

    if form == "pickle":  # and run it would
        pickle.loads(Path("evil.pth").read_bytes())
    else:
        torch.load("evil.pth", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "nested", "parallel", "safetensors", "half"])
def test_torchvisions_layout_gives_its_logits(tmp_path, form):
    model = theirs(aux_logits=True)
    tensors = model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif form == "nested":
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    elif form == "half":
        model = copy.deepcopy(model).half()
        torch.save(model.state_dict(), path)
        model.float()
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    network = ours()
    lines = pretrained.initialise(network, str(path), PETS, **PIXELS)
    assert lines == [
        f"init     {path}: 364 of 364 tensors, 3 classes taken to be these in this order"
    ]
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network.eval()(x), model(x), atol=1e-5, rtol=1e-4)
    # The heads too: torchvision's forward names them since 0.21 as the paper does.
    for head in ("aux1", "aux2"):
        assert same(network, model, f"{head}.")


def test_other_classes_get_new_classifiers(tmp_path):
    model = theirs(7, aux_logits=True)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    network, untouched = ours(), ours()
    lines = pretrained.initialise(network, str(tmp_path / "w.pth"), PETS, **PIXELS)
    assert lines == [
        f"init     {tmp_path / 'w.pth'}: 358 of 364 tensors",
        "init     new: fc (7 classes, here 3), aux1.fc2 (7 classes, here 3), "
        "aux2.fc2 (7 classes, here 3)",
    ]
    for name, tensor in network.state_dict().items():
        new = name.startswith(("fc.", "aux1.fc2.", "aux2.fc2."))
        assert torch.equal(tensor, (untouched if new else model).state_dict()[name]), name


def test_heads_that_only_one_side_has(tmp_path):
    torch.save(theirs(aux_logits=False).state_dict(), tmp_path / "without.pth")
    torch.save(theirs(aux_logits=True).state_dict(), tmp_path / "with.pth")
    network, untouched = ours(), ours()
    lines = pretrained.initialise(network, str(tmp_path / "without.pth"), PETS, **PIXELS)
    assert lines[1:] == ["init     new: aux1 (not in the file), aux2 (not in the file)"]
    assert same(network, untouched, "aux")
    assert same(network, theirs(aux_logits=False))

    network = ours(aux_logits=False)
    lines = pretrained.initialise(network, str(tmp_path / "with.pth"), PETS, **PIXELS)
    assert lines[1:] == ["init     not used: the heads (model.aux_logits is false)"]
    assert same(theirs(aux_logits=True), network)


NO_WEIGHTS = {
    "text": b"no weights at all",
    "empty": b"",
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "JSON": b'{"lr": 0.1}',
    "YAML": b"a: 1\nb: 2\n",
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "variant",
            "differs: inception3a.branch3.1.conv.weight is (32, 16, 3, 3), here (32, 16, 5, 5), ",
        ),
        ("lacks", "lacks conv1.conv.weight, inception4e.branch1.bn.bias."),
        ("unknown", "has unknown layer1.weight, fc2.weight."),
        ("half a head", "lacks aux1.fc1.weight."),
        ("other", "no state dict: it holds other things than named tensors."),
        ("text", "no file of weights. Save model.state_dict() alone, as "),
        ("empty", "no file of weights. "),
        ("JPEG", "no file of weights. "),
        ("JSON", "no file of weights. "),
        ("YAML", "no file of weights. "),
        ("TorchScript", "a TorchScript program, no state dict. Save model.state_dict() alone, as "),
        ("NaN", " holds NaN or infinity, first in conv2.bn.weight. "),
        ("NaN.safetensors", " holds NaN or infinity, first in conv2.bn.weight. "),
        ("infinity", " holds NaN or infinity, first in conv2.bn.running_var. "),
        ("truncated", "cannot be loaded ("),
        ("truncated.safetensors", "damaged or truncated."),
        ("damaged checkpoint", "damaged or truncated (its SHA-256 does not match)"),
    ],
)
def test_refused_with_names(tmp_path, change, complaint):
    path = tmp_path / ("w.safetensors" if change.endswith(".safetensors") else "w.pth")
    tensors = dict(theirs(aux_logits=True).state_dict())
    if change == "lacks":
        del tensors["conv1.conv.weight"], tensors["inception4e.branch1.bn.bias"]
    elif change == "half a head":
        del tensors["aux1.fc1.weight"]
    elif change == "unknown":
        tensors |= {"layer1.weight": torch.zeros(3), "fc2.weight": torch.zeros(3)}
    elif change == "other":
        tensors["epoch"] = 3
    elif change.startswith(("NaN", "infinity")):
        name, number = (
            ("weight", torch.nan) if change != "infinity" else ("running_var", -torch.inf)
        )
        tensors[f"conv2.bn.{name}"] = tensors[f"conv2.bn.{name}"].clone()
        tensors[f"conv2.bn.{name}"][1] = number
        tensors["fc.bias"] = torch.full((3,), torch.nan)  # comes later
    torch.save(tensors, path)
    if change in NO_WEIGHTS:
        path.write_bytes(NO_WEIGHTS[change])
    elif change == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # people still have such files
            torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(path))
    elif change == "NaN.safetensors":
        safetensors.torch.save_file(tensors, path)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif change == "truncated.safetensors":
        safetensors.torch.save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif change == "damaged checkpoint":
        path = checkpoint.save(tmp_path, checkpoint.TrainState(3, tensors))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    variant = "paper" if change == "variant" else "torchvision"
    network, before = ours(variant=variant), ours(variant=variant)
    with pytest.raises(UserError) as refused:
        pretrained.initialise(network, str(path), PETS, **PIXELS)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert refused.value.exit_code == ExitCode.CHECKPOINT
    if change == "variant":
        assert str(refused.value).endswith(
            "The other model.variant (paper, torchvision) has these shapes."
        )
    assert same(network, before)


def test_nan_in_what_is_not_used_harms_nobody(tmp_path):
    tensors = dict(theirs(7, aux_logits=True).state_dict())
    for name in ("fc.bias", "aux1.fc1.bias"):  # of other classes, of a head
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    torch.save(tensors, tmp_path / "w.pth")
    network = ours(aux_logits=False)
    pretrained.initialise(network, str(tmp_path / "w.pth"), PETS, **PIXELS)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_a_file_of_before_the_counters(tmp_path):
    tensors = {n: t for n, t in theirs().state_dict().items() if not n.endswith("batches_tracked")}
    torch.save(tensors, tmp_path / "old.pth")
    network = ours(aux_logits=False)
    pretrained.initialise(network, str(tmp_path / "old.pth"), PETS, **PIXELS)
    assert torch.equal(network.conv1.conv.weight, tensors["conv1.conv.weight"])


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_gives_its_average_and_classes_are_compared_by_name(trained_folder):
    run = trained_folder / "runs/tiny"
    state, _ = checkpoint.newest(run / "checkpoints")
    average = state.ema["0.9"]
    assert not torch.equal(average["fc.weight"], state.model["fc.weight"])
    settings = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    for given in (run, run / "checkpoints/step-00000006.safetensors"):
        network = ours(variant="paper")
        lines = pretrained.initialise(network, str(given), PETS, **settings)
        assert lines == [f"init     {given} (step 6, average 0.9): 364 of 364 tensors"]
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, average[name]), name

    network = ours(variant="paper")  # three classes there and here, but others
    lines = pretrained.initialise(network, str(run), ("ant", "bee", "cow"), **PIXELS)
    assert lines[1] == (
        "init     new: fc (other classes), aux1.fc2 (other classes), aux2.fc2 (other classes)"
    )
    assert [line.split(" is ")[0] for line in lines[2:]] == [
        "warning  data.mean",
        "warning  data.std",
    ]
    assert not torch.equal(network.fc.weight, average["fc.weight"])
    assert torch.equal(network.aux1.fc1.weight, average["aux1.fc1.weight"])


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(trained_folder, capsys):
    last = trained_folder / "runs/tiny/checkpoints/step-00000006.safetensors"
    content = last.read_bytes()
    last.unlink()  # a link
    last.write_bytes(content[:-8])
    lines = pretrained.initialise(
        ours(variant="paper"), str(trained_folder / "runs/tiny"), PETS, **PIXELS
    )
    assert "(step 3, average 0.9)" in lines[0]
    assert f"{last}: damaged" in capsys.readouterr().err


def test_only_step_0_reads_the_weights(in_folder, trained_folder, monkeypatch, capsys):
    def train(*words: str, rc: int = ExitCode.DONE) -> str:
        assert cli.main(["--config", "tiny.yaml", *words]) == rc
        return capsys.readouterr().err

    monkeypatch.chdir(trained_folder)
    shutil.move("runs/tiny", "first")
    settings = ["data.val=null", "model.init=first", "model.freeze=all_but_head"]
    told = train(*settings, "schedule.epochs=1")
    assert "init     first (step 6, average 0.9): 364 of 364 tensors\n" in told
    start, _ = checkpoint.newest(trained_folder / "first/checkpoints")
    after, _ = checkpoint.newest(trained_folder / "runs/tiny/checkpoints")
    frozen = [name for name in after.model if not name.startswith(HEAD)]
    assert len(frozen) == 342
    for name in frozen:
        assert torch.equal(after.model[name], start.ema["0.9"][name]), name
        assert torch.equal(after.ema["0.9"][name], start.ema["0.9"][name]), name
    assert not torch.equal(after.model["fc.weight"], start.ema["0.9"]["fc.weight"])
    assert all(name.startswith(HEAD) for name in after.momentum)

    shutil.rmtree("first")
    other = [settings[0], "model.init=elsewhere", settings[2]]
    told = train(*other, "--resume", rc=ExitCode.USAGE)
    assert "model.init: first -> elsewhere" in told
    # The usual second stage: the heads have learnt, now the rest may. The weights are not needed.
    whole = [*settings[:2], "--resume", "--allow-config-change", "model.freeze"]
    assert "init     " not in train(*whole, "schedule.epochs=2")
    unfrozen, _ = checkpoint.newest(trained_folder / "runs/tiny/checkpoints")
    name = "conv1.conv.weight"
    assert not torch.equal(unfrozen.model[name], after.model[name])


def test_what_is_no_file_of_weights_is_said_before_torch_is_loaded(tiny_folder, cli):
    answer = cli("--config", "tiny.yaml", "model.init=runs/none", cwd=tiny_folder)
    assert answer.rc == ExitCode.USAGE
    assert answer.error.startswith("command line model.init: runs/none does not exist.")
    assert "loading PyTorch" not in answer.stderr


# --- torchvision's published weights -------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file in the layout of the published one (1,000 classes, heads), and where it comes from."""
    model = theirs(1000, aux_logits=True, transform_input=True)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    source = (tmp_path / "w.pth").rename(tmp_path / f"googlenet-{digest}.pth")
    monkeypatch.setattr(pretrained, "URL", source.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return model, source, tmp_path / "home/hub/checkpoints" / source.name


def test_the_published_file_is_torchvisions():
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    assert weights.url == pretrained.URL
    assert f"{weights.meta['_file_size']:.1f} MB" == pretrained._DOWNLOAD


def test_published_weights_expect_what_transform_input_makes(published, capsys):
    model, source, kept = published
    classes = tuple(map(str, range(1000)))
    network = ours(1000)
    lines = pretrained.initialise(network, "torchvision", classes, **PIXELS)
    assert lines == [
        "init     torchvision's ImageNet weights: 344 of 364 tensors, 1000 classes taken to be "
        "these in this order",
        "init     new: aux1 (never trained there), aux2 (never trained there)",
    ]
    assert kept.read_bytes() == source.read_bytes()
    assert "49.7 MB" in capsys.readouterr().err
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    imagenet = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = to_device(images, torch.device("cpu"), **PIXELS)
    torch.testing.assert_close(
        network.eval()(x), model(imagenet(images / 255)), atol=1e-4, rtol=1e-4
    )
    source.unlink()  # from now on the kept file is enough
    pretrained.initialise(ours(), "torchvision", PETS, **PIXELS)


def test_without_internet_it_says_what_to_fetch_and_where_to_put_it(published):
    _, source, kept = published
    content = source.read_bytes()
    source.unlink()
    with pytest.raises(UserError) as refused:
        pretrained.load("torchvision")
    assert f"Fetch {source.as_uri()} by hand and put it there: {kept}." in str(refused.value)
    kept.write_bytes(content[:-1])
    with pytest.raises(UserError, match="damaged"):
        pretrained.load("torchvision")
    kept.write_bytes(content)
    pretrained.load("torchvision")


def test_a_download_that_is_cut_short_is_refused_and_not_kept(published):
    _, source, kept = published
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be downloaded"):
        pretrained.load("torchvision")
    assert not kept.exists()


def test_published_weights_imply_their_settings(in_folder):
    loaded = config_file.load("tiny.yaml", ["model.init=torchvision"])
    prepared = launch.prepare(loaded, resume=False, fresh=False, allow=())
    assert prepared.config.model.variant == "torchvision"
    assert prepared.config.data.mean == prepared.config.data.std == (0.5, 0.5, 0.5)
    for setting, right in (
        ("model.variant=paper", "torchvision"),
        ("data.mean=[0.4, 0.4, 0.4]", "[0.5, 0.5, 0.5]"),
    ):
        loaded = config_file.load("tiny.yaml", ["model.init=torchvision", setting])
        with pytest.raises(UserError, match="need") as refused:
            launch.prepare(loaded, resume=False, fresh=False, allow=())
        assert str(refused.value).startswith(f"command line {setting.split('=')[0]}: ")
        assert f"or write {right}." in str(refused.value)


def test_random_weights_are_not_frozen(in_folder, capsys):
    words = ["--config", "tiny.yaml", "model.freeze=stem"]
    assert cli.main(words) == ExitCode.USAGE
    assert "command line model.freeze: stem would keep random numbers" in capsys.readouterr().err


# --- what is frozen, and how fast the rest learns ------------------------------------------------


def prepared(part: str, head_lr_scale: float = 1.0, fused: bool = True) -> Bench:
    bench = Bench(limit=2, fused=fused)
    bench.model.freeze(part)
    bench.optimizer = optim.build_sgd(
        bench.model,
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
        fused=fused,
        head=HEAD,
        head_lr_scale=head_lr_scale,
    )
    return bench


@pytest.mark.parametrize(
    ("part", "fused"),
    [("none", True), ("stem", True), ("stem", False), ("all_but_head", True)],
)
def test_frozen_parts_stand_still(part, fused):
    bench = prepared(part, fused=fused)
    before = {name: tensor.clone() for name, tensor in bench.live.items()}
    for step in range(2):
        bench.model.eval()  # as an evaluation leaves it
        bench.model.train()
        bench.step(step)
    stem = ("conv1.", "conv2.", "conv3.")
    moved = {name for name in before if not torch.equal(before[name], bench.live[name])}
    expected = {
        "none": set(before),
        "stem": {name for name in before if not name.startswith(stem)},
        "all_but_head": {name for name in before if name.startswith(HEAD)},
    }[part]
    assert moved == expected
    for name in set(before) - expected:
        assert torch.equal(bench.averages[0.9][name], before[name]), name
    names = {id(p): name for name, p in bench.model.named_parameters()}
    kept = {names[id(p)] for p in bench.optimizer.state}
    assert kept == {name for name in names.values() if name in expected}


@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_step_changes_nothing_with_frozen_parts(fused):
    bench = prepared("stem", head_lr_scale=10, fused=fused)
    bench.step(0)
    before = {name: tensor.clone() for name, tensor in bench.live.items()}
    momentum = [slot["momentum_buffer"].clone() for slot in bench.optimizer.state.values()]
    handle = bench.model.fc.register_forward_hook(lambda module, inputs, out: out * float("nan"))
    bench.step(1)
    handle.remove()
    assert bench.guard.counts.tolist() == [1, 1, -1]
    for name, tensor in bench.live.items():
        assert torch.equal(tensor, before[name]), name
    for old, slot in zip(momentum, bench.optimizer.state.values(), strict=True):
        assert torch.equal(slot["momentum_buffer"], old)


def test_the_heads_learn_faster_by_their_scale():
    slow, fast = prepared("none"), prepared("none", head_lr_scale=10)
    before = {name: p.detach().clone() for name, p in slow.model.named_parameters()}
    slow.step(0)
    fast.step(0)
    for name, parameter in slow.model.named_parameters():
        update = parameter.detach() - before[name]
        other = fast.model.get_parameter(name).detach() - before[name]
        scale = 10 if name.split(".")[0] in ("fc", "aux1", "aux2") else 1
        torch.testing.assert_close(other, scale * update, atol=1e-6, rtol=1e-3)

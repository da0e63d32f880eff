"""Weights to start from (`model.init`): an earlier run's, a file's, or torchvision's own.

What a file of weights must bring is all of the network but its classifiers: the main one, `fc`, and
the two heads, `aux1` and `aux2`, may be absent, and their last layers are new where the classes
differ. (Torchvision before 0.21 returned the heads' outputs in the wrong order, pytorch/vision
#8736; the names in its files were right, so they load like any other.)
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.model.googlenet import HEAD, GoogLeNet
from googlenet_train.reporting import say
from googlenet_train.run.trained import saved_state

# torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1; the name holds the start of its SHA-256.
URL = "https://download.pytorch.org/models/googlenet-1378be20.pth"
_DOWNLOAD = "49.7 MB"
_SAVE = "Save model.state_dict() alone, as safetensors or by torch.save"
_HEADS = ("aux1.", "aux2.")
_LAST_LAYERS = ("fc", "aux1.fc2", "aux2.fc2")


class Weights(NamedTuple):
    """Tensors under torchvision's names, and what is known of them."""

    what: str  # for people
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None  # None: only their number is known, from the shapes
    normalisation: Mapping[str, Sequence[float]] | None = None  # `mean` and `std` of the pixels
    absent: str = "not in the file"  # why classifiers are


def initialise(
    model: GoogLeNet,
    init: str,
    classes: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[str]:
    """Put the weights that `init` names into `model`, and return what to tell of it, in lines.

    The last layers stay as they are where the classes differ: in their names, or in their number
    where a file does not know the names. So do classifiers that are not in the file.
    Raises UserError (checkpoint) where the file is damaged, unsafe, or of another network, or where
    a tensor to be used has NaN or infinity in it.
    """
    weights = load(init)
    own = model.state_dict()
    given = {name: t for name, t in weights.tensors.items() if name in own}
    unknown = [name for name in weights.tensors if name not in own]
    heads = [] if model.aux1 else [name for name in unknown if name.startswith(_HEADS)]
    fresh = {part: weights.absent for part in HEAD if _part(own, part) and not _part(given, part)}

    kept = ""
    if "fc.weight" in given:
        count = next(iter(given["fc.weight"].shape), 0)
        if count != len(classes) or weights.classes not in (None, tuple(classes)):
            other = f"{count} classes, here {len(classes)}"
            for layer in _LAST_LAYERS:
                if _part(given, layer):
                    fresh[layer] = other if count != len(classes) else "other classes"
                    given = {n: t for n, t in given.items() if n not in _part(given, layer)}
        elif weights.classes is None:
            kept = f", {count} classes taken to be these in this order"

    _check_fits(weights.what, own, given, fresh, [name for name in unknown if name not in heads])
    _check_finite(weights.what, given)
    model.load_state_dict(own | given)
    lines = [f"init     {weights.what}: {len(given)} of {len(own)} tensors{kept}"]
    if fresh:
        reasons = ", ".join(f"{part} ({reason})" for part, reason in fresh.items())
        lines.append(f"init     new: {reasons}")
    if heads:
        lines.append("init     not used: the heads (model.aux_logits is false)")
    if weights.normalisation is not None:
        for key, here in (("mean", mean), ("std", std)):
            if list(here) != list(weights.normalisation[key]):
                lines.append(
                    f"warning  data.{key} is {list(here)}, and was {weights.normalisation[key]} "
                    "when these weights were trained"
                )
    return lines


def load(init: str) -> Weights:
    """The weights that `model.init` names. Raises UserError (checkpoint)."""
    if init == "torchvision":
        path = _published()
        # Its heads were never trained: they only fill the file.
        tensors = {n: t for n, t in _from_pickle(path).items() if not n.startswith(_HEADS)}
        return Weights("torchvision's ImageNet weights", tensors, absent="never trained there")
    path = Path(init).expanduser()
    if path.is_dir() or _is_checkpoint(path):
        state = saved_state(path, "last")
        decay = max(state.ema, key=float, default=None)
        which = "no average kept" if decay is None else f"average {decay}"
        return Weights(
            f"{init} (step {state.step:,}, {which})",
            state.model if decay is None else state.ema[decay],
            tuple(state.info["classes"]),
            state.info["config"]["data"],
        )
    tensors = _from_safetensors(path) if _is_safetensors(path) else _from_pickle(path)
    return Weights(init, tensors)


def _part(tensors: Mapping[str, Tensor], part: str) -> list[str]:
    return [name for name in tensors if name.startswith(f"{part}.")]


def _check_fits(
    what: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    fresh: Mapping[str, str],
    unknown: Sequence[str],
) -> None:
    new = tuple(f"{part}." for part in fresh)
    missing = [
        name
        for name in own
        # Files of before PyTorch 0.4.1 lack the counters, which change nothing.
        if name not in given and not name.startswith(new) and not name.endswith("batches_tracked")
    ]
    shapes = [
        f"{name} is {tuple(tensor.shape)}, here {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]
    for complaint, names in (("lacks", missing), ("has unknown", unknown), ("differs:", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            hint = ""
            if complaint == "differs:" and all(".branch3.1." in name for name in names):
                hint = " The other model.variant (paper, torchvision) has these shapes."
            raise UserError(
                f"model.init: {what} is of another network: it {complaint} "
                f"{', '.join(names[:3])}{more}.{hint}",
                ExitCode.CHECKPOINT,
            )


def _check_finite(what: str, given: Mapping[str, Tensor]) -> None:
    """No run would learn from such weights, and its first step would blame the learning rate."""
    for name, tensor in given.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"model.init: {what} holds NaN or infinity, first in {name}. Take an earlier save, "
                "or other weights.",
                ExitCode.CHECKPOINT,
            )


# --- files ---------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    """By the content: the length of a header, then the header, which is JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from None


def _is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint of ours: it keeps the network's tensors under `model/`."""
    if not _is_safetensors(path):
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return any(name.startswith("model/") for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        raise _refusal(path, "damaged or truncated") from None


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return _cleaned(path, safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError):
        raise _refusal(path, "damaged or truncated") from None


def _from_pickle(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save. Nothing but tensors is taken from it, no code is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not PyTorch's
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises nearly anything
        raise _refusal(path, _why_not(path, error)) from None
    for key in ("state_dict", "model"):  # where training scripts put it
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return _cleaned(path, loaded)


def _why_not(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch.load refuses, and how to mend it."""
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # a zip archive or, before PyTorch 1.6, a pickle
        return f"no file of weights. {_SAVE}"
    if "TorchScript" in str(error):
        return f"a TorchScript program, no state dict. {_SAVE}"
    if isinstance(error, pickle.UnpicklingError):
        return f"no plain state dict: it could run code when loaded, so it was not. {_SAVE}"
    return f"cannot be loaded ({(str(error).splitlines() or [type(error).__name__])[0]})"


def _cleaned(path: Path, loaded: object) -> dict[str, Tensor]:
    """The tensors in float32, without the `module.` that data-parallel training writes."""
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise _refusal(path, "no state dict: it holds other things than named tensors")
    return {
        str(name).removeprefix("module."): t.float() if t.is_floating_point() else t
        for name, t in loaded.items()
    }


def _refusal(path: Path, complaint: str) -> UserError:
    return UserError(f"model.init: {path}: {complaint}.", ExitCode.CHECKPOINT)


# --- torchvision's published weights -------------------------------------------------------------


def _published() -> Path:
    """The file in PyTorch's own cache, downloaded if it is not there; its hash is checked.

    Raises UserError (checkpoint), saying what to fetch by hand and where to put it.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    by_hand = f"Fetch {URL} by hand and put it there: {path}"
    if not path.exists():
        say(f"init     downloading {URL} ({_DOWNLOAD}) to {path.parent}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                URL, str(path), hash_prefix=_hash_prefix(), progress=False
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.init: torchvision's weights cannot be downloaded ({error}). {by_hand}.",
                ExitCode.CHECKPOINT,
            ) from None
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(_hash_prefix()):
        raise _refusal(path, f"damaged (its SHA-256 does not begin {_hash_prefix()}). {by_hand}")
    return path


def _hash_prefix() -> str:
    match = re.search(r"-([0-9a-f]{8})\.pth$", URL)
    assert match is not None
    return match[1]

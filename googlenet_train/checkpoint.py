"""One file a checkpoint, whole or absent: save, verify, load, retain.

A checkpoint is a safetensors file. Its tensors are `model/<name>`, `momentum/<name>`,
`ema/<decay>/<name>`, `window/<name>` and, in float16, `loss_scale/<name>`; everything else is JSON
in its metadata, together with a SHA-256 over all the rest of the file. It is written under a
temporary name, fsynced, renamed, and the folder fsynced: the rename is the commit. Torch is loaded
only where tensors are made, so that a checkpoint can be found and verified before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import make_folder, write_durably

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_NO_HASH = b"0" * 64
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
}
_HASH = re.compile(rb'"sha256":"([0-9a-f]{64})"')


@dataclass
class TrainState:
    """Everything that a run is at one step; nothing random, for random numbers come from counters.

    `window` holds the sums since the last log, `loss_scale` what float16 needs and others leave
    empty; `info` is JSON: the resolved config, class names, fingerprint of the data, topology, the
    best evaluation so far.
    """

    step: int
    model: dict[str, Tensor]
    momentum: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    window: dict[str, Tensor] = field(default_factory=dict)
    loss_scale: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first: by step, for clocks can be set back."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def header(path: Path) -> dict[str, Any]:
    """`TrainState.info` as the file states it, cheap and not verified; empty if unreadable."""
    try:
        with safetensors.safe_open(path, "np") as file:
            info: dict[str, Any] = json.loads((file.metadata() or {})["info"])
            return info
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return {}


def verify(path: Path) -> dict[str, Any]:
    """`TrainState.info` of a file that is whole.

    Raises UserError (checkpoint), naming the file and its damage, where it is not.
    """
    info: dict[str, Any] = json.loads(_read(path)[1]["info"])
    return info


def save(folder: Path, state: TrainState) -> Path:
    """Write `state` into `folder` and return its path once it is on the disk.

    Raises UserError (storage) where the disk is full or fails; older checkpoints stay as they were.
    """
    path = checkpoint_path(folder, state.step)
    pieces = _serialise(state)
    try:
        make_folder(folder)
        for leftover in folder.glob("*.partial"):  # of a write that a crash cut short
            leftover.unlink()
        write_durably(path, pieces)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint could not be written ({error.strerror}). "
            "Earlier checkpoints are untouched; make room or mend the disk, then --resume.",
            ExitCode.STORAGE,
        ) from error
    return path


def load(path: Path) -> TrainState:
    """Read and verify one checkpoint.

    Raises UserError (checkpoint) naming the file and what is wrong with it.
    """
    import safetensors.torch

    content, metadata = _read(path)
    state = TrainState(step=int(metadata["step"]), model={}, info=json.loads(metadata["info"]))
    for name, tensor in safetensors.torch.load(bytes(content)).items():
        kind, rest = name.split("/", 1)
        if kind == "ema":
            decay, rest = rest.split("/", 1)
            state.ema.setdefault(decay, {})[rest] = tensor
        else:
            getattr(state, kind)[rest] = tensor
    return state


def newest(folder: Path) -> tuple[TrainState | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not.

    None where the folder has no checkpoint at all. Raises UserError (checkpoint) where there are
    some and none verifies: starting again at step 0 would silently throw a run away.
    """
    bad: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return load(path), bad
        except UserError as error:
            bad.append(str(error))
    if bad:
        lines = "\n  ".join(bad)
        raise UserError(
            f"{folder}: no checkpoint verifies, and a run is never restarted from nothing:\n"
            f"  {lines}\nRestore one from a backup, or train anew (--fresh).",
            ExitCode.CHECKPOINT,
        )
    return None, bad


def prune(
    folder: Path,
    saved: Path,
    keep: int,
    protected: Iterable[Path] = (),
    passed_over: Iterable[Path] = (),
) -> None:
    """Delete all but the newest `keep` (at least 2) checkpoints and the `protected` ones.

    Only after the one just `saved` has been read back and verified: until then the old ones are the
    run. Damaged ones that resuming has `passed_over` neither count nor go.
    Raises UserError (storage), and deletes nothing, where `saved` does not verify.
    """
    ignored = set(passed_over) - {saved}
    paths = [
        path
        for path in checkpoints(folder)
        if path not in ignored and step_of(path) <= step_of(saved)
    ]
    old = [path for path in paths[: -max(2, keep)] if path not in set(protected)]
    if not old:
        return
    try:
        verify(saved)
    except UserError as error:
        raise UserError(
            f"{error}, although it was written just now: the storage is failing. Older checkpoints "
            "are untouched; mend it, then --resume.",
            ExitCode.STORAGE,
        ) from None
    for path in old:
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[bytearray, dict[str, str]]:
    """The content and metadata of a file that verifies."""
    try:
        with path.open("rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            del content[file.readinto(content) :]
        return content, _verified_metadata(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", ExitCode.CHECKPOINT) from None
    except ValueError as error:
        raise UserError(f"{path}: {error}", ExitCode.CHECKPOINT) from None


def named_tensors(state: TrainState) -> dict[str, Tensor]:
    """The tensors of `state` under their names in the file."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"momentum/{name}": tensor for name, tensor in state.momentum.items()}
    for decay, average in state.ema.items():
        tensors |= {f"ema/{decay}/{name}": tensor for name, tensor in average.items()}
    tensors |= {f"window/{name}": tensor for name, tensor in state.window.items()}
    tensors |= {f"loss_scale/{name}": tensor for name, tensor in state.loss_scale.items()}
    return tensors


def size(state: TrainState) -> int:
    """Bytes of the tensors of `state`."""
    return sum(tensor.numel() * tensor.element_size() for tensor in named_tensors(state).values())


def most_on_disk(size: int, keep: int) -> int:
    """Bytes of the checkpoints of a run: those it keeps, the best, and one being written."""
    return size * (keep + 2)


def _serialise(state: TrainState) -> list[memoryview]:
    """The file in pieces: its header, then each tensor where it lies in memory.

    safetensors' own writer copies everything three times and holds Python's lock meanwhile, so that
    training would stand still although another thread saves.
    """
    metadata = {
        "format": str(FORMAT),
        "step": str(state.step),
        "info": json.dumps(state.info),
        "sha256": _NO_HASH.decode(),
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    pieces: list[memoryview] = []
    end = 0
    # The widest type first, as the format wants it: then every tensor is aligned.
    tensors = sorted(named_tensors(state).items(), key=lambda item: -item[1].element_size())
    for name, tensor in tensors:
        pieces.append(_bytes(tensor))
        start, end = end, end + pieces[-1].nbytes
        entries[name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = bytearray(len(text).to_bytes(8, "little") + text)
    digest = hashlib.sha256(head)
    for piece in pieces:
        digest.update(piece)
    position = _hash_position(head)
    head[position : position + 64] = digest.hexdigest().encode()
    return [memoryview(head), *pieces]


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, row after row; NumPy's copy starts no threads beside training's."""
    import torch

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    array = np.ascontiguousarray(tensor.detach().cpu().view(bits).numpy())
    return array.reshape(-1).view(np.uint8).data


def _hash_position(content: bytearray) -> int:
    header_length = int.from_bytes(content[:8], "little")
    match = _HASH.search(content, 8, min(8 + header_length, len(content)))
    if match is None:
        raise ValueError("damaged, or no checkpoint of googlenet-train (it carries no checksum)")
    return match.start(1)


def _verified_metadata(content: bytearray) -> dict[str, str]:
    if not content:
        raise ValueError("empty file")
    position = _hash_position(content)
    stated = bytes(content[position : position + 64])
    content[position : position + 64] = _NO_HASH
    if hashlib.sha256(content).hexdigest().encode() != stated:
        raise ValueError("damaged or truncated (its SHA-256 does not match)")
    header = json.loads(bytes(content[8 : 8 + int.from_bytes(content[:8], "little")]))
    metadata: dict[str, str] = header["__metadata__"]
    if int(metadata["format"]) > FORMAT:
        raise ValueError(
            f"written by a newer googlenet-train (format {metadata['format']}); update this one"
        )
    return metadata

"""What keeps a run from starting, in its settings and in the run that it would go on with."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from googlenet_train import distributed
from googlenet_train.config import Config
from googlenet_train.config import file as config_file
from googlenet_train.config import text as config_text
from googlenet_train.data import mixing, order
from googlenet_train.data.folders import FolderFiles
from googlenet_train.data.index import Index
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import runs, sources
from googlenet_train.run.sources import Sources

# Settings that no resumed run can change: its checkpoint holds other tensors.
ANOTHER_NETWORK = ("model.variant", "model.aux_logits")

# What torchvision's published weights were trained with: `model.init: torchvision` implies it.
PUBLISHED: Mapping[str, object] = {
    "model.variant": "torchvision",
    "data.mean": [0.5, 0.5, 0.5],
    "data.std": [0.5, 0.5, 0.5],
}


def check_keys(allow: Sequence[str]) -> None:
    keys = config_text.properties()
    for key in allow:
        if key not in keys:
            near = get_close_matches(key, keys, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--allow-config-change {key}: there is no such setting.{hint}", ExitCode.USAGE
            )


def continued(folder: Path, config: Config, allow: Sequence[str]) -> Config:
    """`config` with what was `auto` as it was resolved at step 0; other changes are refused."""
    saved = runs.saved_config(folder)
    if saved is None:
        raise UserError(
            f"{folder} has checkpoints but no {runs.CONFIG}. Restore it, or start over: --fresh in "
            "place of --resume.",
            ExitCode.CHECKPOINT,
        )
    changed = [change for change in runs.changes(saved, config) if change[0] not in allow]
    other = [change for change in runs.changes(saved, config) if change[0] in ANOTHER_NETWORK]
    if other:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in other)
        raise UserError(
            f"{folder} trains another network:\n{lines}\nUndo the change, or start over: --fresh "
            "in place of --resume.",
            ExitCode.USAGE,
        )
    if changed:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in changed)
        keys = " ".join(f"--allow-config-change {key}" for key, _, _ in changed)
        raise UserError(
            f"{folder} was trained with other settings, so going on would not be the same run:\n"
            f"{lines}\nUndo the change, accept it with {keys}, or start over: --fresh in place of "
            "--resume.",
            ExitCode.USAGE,
        )
    auto = [key for key, value in config_text.flat(config).items() if value == "auto"]
    before = config_text.flat(saved)
    return config_text.resolved(config, {key: before[key] for key in auto})


def check_outside(folder: Path, opened: Sources) -> None:
    """A run writes pictures: within the photos they would make a class."""
    indexes = {"data.train": opened.train} | ({"data.val": opened.val} if opened.val else {})
    for key, index in indexes.items():
        files = index.files
        if isinstance(files, FolderFiles) and folder.resolve().is_relative_to(files.root.resolve()):
            raise UserError(
                f"the run's folder {folder} lies in that of the photos ({key}), where its pictures "
                "would be taken for photos. Start in another folder, or choose one with "
                "run.dir=FOLDER.",
                ExitCode.USAGE,
            )


def check_same_data(
    loaded: config_file.Loaded, folder: Path, before: runs.Progress, opened: Sources
) -> None:
    """Whether `opened` is what the run in `folder`, that has come to `before`, was trained on."""
    train = opened.train
    classes = before.info.get("classes")
    if classes is not None and len(classes) != len(train.classes):
        raise UserError(
            f"{loaded.where('data.train')}: {len(train.classes)} classes, but the run in "
            f"{folder} was trained on {len(classes)}. Give it the same classes, or "
            "start over: --fresh in place of --resume.",
            ExitCode.USAGE,
        )
    for key, fingerprint in opened.fingerprints().items():
        old = before.info.get("fingerprints", {}).get(key)
        if None not in (old, fingerprint) and old != fingerprint:
            changed = sources.split_changes(folder / sources.SPLIT, opened)
            raise UserError(
                f"{loaded.where(key)}: the images are no longer those that the run in "
                f"{folder} was trained on "
                f"({changed or 'files added, removed or renamed'}). Restore them, "
                "start over (--fresh in place of --resume), or begin a new run with its weights: "
                f"model.init={folder} without --resume.",
                ExitCode.DATA,
            )


def with_published(loaded: config_file.Loaded) -> Config:
    """The config with what torchvision's published weights need, where it starts from them."""
    if loaded.config.model.init != "torchvision":
        return loaded.config
    stated = config_text.flat(loaded.config)
    for key, value in PUBLISHED.items():
        if key in loaded.places and stated[key] != value:
            raise UserError(
                f"{loaded.where(key)}: {stated[key]}, but the weights of model.init: torchvision "
                f"need {value}. Leave it out, or write {value}.",
                ExitCode.USAGE,
            )
    return config_text.resolved(loaded.config, PUBLISHED)


def check_init(loaded: config_file.Loaded, init: str) -> None:
    try:
        runs.named_checkpoint(Path(init).expanduser(), "last")
    except UserError as error:
        raise UserError(
            f"{loaded.where('model.init')}: {error} A file of weights (.safetensors, .pth) or "
            "torchvision will do too.",
            error.exit_code,
        ) from None


def check_image_size(loaded: config_file.Loaded) -> None:
    """Training images may be smaller than those of evaluation, and never larger."""
    largest, evaluated = loaded.config.largest_side, loaded.config.data.image_size
    if largest > evaluated:
        raise UserError(
            f"{loaded.where('schedule.image_size')}: to {largest} is above data.image_size "
            f"{evaluated}, the size of evaluation: the larger steps would be wasted. Lower `to`, "
            f"or write data.image_size={largest}.",
            ExitCode.USAGE,
        )


def check_batch(loaded: config_file.Loaded, config: Config, count: int) -> None:
    size = config.optimizer.batch_size
    try:
        order.check_divides(size, distributed.world_size(), config.parts)
        order.steps_per_epoch(count, size)
        if config.augment.mixup or config.augment.cutmix:
            mixing.check_pairs(size, distributed.world_size(), config.parts)
    except UserError as error:
        key = "optimizer.batch_size"  # the message begins with it; say where it was written too
        raise UserError(loaded.where(key) + str(error).removeprefix(key), error.exit_code) from None


def check_class_count(loaded: config_file.Loaded, stated: int | str, train: Index) -> None:
    if stated not in ("auto", len(train.classes)):
        raise UserError(
            f"{loaded.where('model.num_classes')}: {stated}, but data.train has "
            f"{len(train.classes)} classes. Write auto, or {len(train.classes)}.",
            ExitCode.USAGE,
        )


def check_class_weights(loaded: config_file.Loaded, opened: Sources) -> None:
    stated = loaded.config.loss.class_weights
    if not isinstance(stated, dict):
        return
    known = {*opened.train.classes, *opened.names}
    for name in stated:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise UserError(
                f"{loaded.where('loss.class_weights')}: data.train has no class '{name}'{hint}",
                ExitCode.USAGE,
            )

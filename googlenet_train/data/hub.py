"""Image data sets of the Hugging Face hub, or a local folder of parquet files, by `datasets`.

`hub:NAME` is the split `train`, `hub:NAME:SPLIT` another. The images are read as they are stored.
`datasets` downloads what is not in its cache, and keeps an Arrow copy of it there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from googlenet_train.data.names import Names, pack_names
from googlenet_train.errors import ExitCode, UserError


class Rows(Protocol):
    """What is used of datasets.Dataset; reads may come from many threads."""

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...

    def select(self, indices: Sequence[int]) -> "Rows": ...


@dataclass(frozen=True, eq=False)
class HubFiles:
    """Photos in the rows of a table; each gets the name `<class>/<row>.jpg`."""

    source: str
    names: Names
    rows: Rows
    column: str

    def name(self, i: int) -> str:
        return f"{self.source}:{self.names[i]}"

    def read(self, i: int) -> bytes:
        data: bytes | None = self.rows[i][self.column]["bytes"]
        if data is None:
            raise _refusal(self.source, f"row {i} of it has no image")
        return data

    def identity(self) -> tuple[bytes, ...]:
        """What the data set's fingerprint covers besides classes and labels: the names."""
        return (self.names.blob,)

    def stamp(self, i: int) -> None:
        """None: a row does not tell its size or age, so what is known of it is not kept."""

    def chosen(self, places: npt.NDArray[np.int64]) -> "HubFiles":
        rows = self.rows.select(places.tolist())
        return HubFiles(self.source, self.names.chosen(places), rows, self.column)


def open_hub(source: str) -> tuple[Sequence[str], npt.NDArray[np.int32], HubFiles]:
    """The class names in the data set's own order, a label per photo, and the photos.

    Raises UserError (DATA) without `datasets`, without the data set, and where it has not exactly
    one column of images and one of class labels.
    """
    try:
        import datasets
    except ImportError:
        raise _refusal(
            source, "needs the package `datasets`: pip install 'googlenet-train[hub]'"
        ) from None
    name, _, split = source.removeprefix("hub:").partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # of any kind: network, login, format, cache, disk
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _refusal(source, f"cannot be opened: {reason}") from None
    kinds = {"image": datasets.Image, "class label": datasets.ClassLabel}
    columns = {}
    for kind, feature in kinds.items():
        found = [column for column, f in table.features.items() if isinstance(f, feature)]
        if len(found) != 1:
            raise _refusal(
                source,
                f"has {len(found) or 'no'} columns of type {feature.__name__} "
                f"(its columns: {', '.join(table.features)}); it needs exactly one {kind} each row",
            )
        columns[kind] = found[0]
    image = columns["image"]
    labels = table.with_format("numpy")[columns["class label"]][:].astype(np.int32)
    if len(labels) == 0 or labels.min() < 0:
        raise _refusal(source, "has photos without a label; choose another split")
    classes: list[str] = table.features[columns["class label"]].names
    folders = [name.replace("/", "_") for name in classes]
    names = pack_names([[f"{folders[label]}/{row:08d}.jpg" for row, label in enumerate(labels)]])
    rows = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return classes, labels, HubFiles(source, names, rows, image)


def _refusal(source: str, complaint: str) -> UserError:
    return UserError(f"'{source}' {complaint}", ExitCode.DATA)

"""Images on disk to batches on the device.

Which image, which crop and which flip are pure functions of (seed, epoch, index): the threads here
only work ahead, so the same pixels reach the same step for any number of them. Decoders and
resizing release Python's lock, so threads scale without worker processes or shared memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from googlenet_train.data import mixing, order
from googlenet_train.data.decode import UndecodableImage
from googlenet_train.data.index import OF_THE_MACHINE, Index
from googlenet_train.data.views import Augmentation, evaluation_views, training_image
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.randomness import Draws

S = TypeVar("S")
T = TypeVar("T")


class Lost(NamedTuple):
    """An image that could not be read and was left out."""

    place: int  # in the index
    reason: str


class Copied(NamedTuple):
    """A batch's tensors on a GPU, once its stream has come to `done` (see `prefetch`)."""

    images: Tensor
    labels: Tensor
    second: tuple[Tensor, Tensor] | None
    done: torch.cuda.Event


class Batch(NamedTuple):
    images: Tensor  # (N, 3, size, size) uint8, channels last; ten-crop: (N * crops, 3, size, size)
    labels: Tensor  # (N,) int64; of a mixed image the label with the larger share
    second: tuple[Tensor, Tensor] | None = None  # mixed: (N,) the other labels, (N,) their shares
    lost: tuple[Lost, ...] = ()  # the batch is smaller by these
    copied: Copied | None = None  # the same on the GPU


def ahead(make: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """`make(item)` for each item, in order, computed by `workers` threads up to that many ahead.

    With 0 workers it is computed when asked for. An exception reaches the caller in its turn.
    """
    if workers == 0:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader", initializer=_one_thread_each)
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread_each() -> None:
    """Keep PyTorch's operations on this thread, in it.

    Otherwise each loader thread gets threads of its own for every large enough operation, and on a
    CPU those take turns with the step's: with this a step is x 1.66 (64 px, two cores). The number
    is the calling thread's own; the step keeps its.
    """
    torch.set_num_threads(1)


def read(index: Index, i: int, make: Callable[[bytes | memoryview], T]) -> T:
    """`make(bytes of image i)`. Raises UserError (DATA), naming the image, if it is undecodable."""
    try:
        return make(index.read(i))
    except UndecodableImage as error:
        raise UserError(
            f"{index.name(i)}: {error}. Replace the file or take it out of the data set.",
            ExitCode.DATA,
        ) from None


def _read_or_lose(
    index: Index, i: int, make: Callable[[bytes | memoryview], T], quarantine: bool
) -> T | Lost:
    """As `read`, but with `quarantine` an image that cannot be read is `Lost`, and no error.

    One that changed under way is an error all the same: it can be read, as another image.
    """
    if not quarantine:
        return read(index, i, make)
    try:
        data = index.files.read(i)
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise index.failure(i, error) from None
        return Lost(i, error.strerror or str(error))
    try:
        return make(data)
    except UndecodableImage as error:
        return Lost(i, str(error))


def training_batch(
    index: Index,
    step: int,
    *,
    seed: int,
    batch_size: int,
    image_size: int,
    augmentation: Augmentation,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int = 0,
    accumulate: int = 1,
    quarantine: bool = False,
    exif_orientation: bool = False,
) -> Batch:
    """The images of one micro-batch of one step: a pure function of its arguments and the files.

    With `quarantine` the images that cannot be read are left out: the batch is smaller by them,
    and empty where only one is left, for batch normalisation learns nothing from one. An image
    whose partner is missing is not mixed.
    """
    chosen = order.batch_indices(
        seed, step, len(index), batch_size, rank, world_size, micro_batch, accumulate
    )
    epoch = step // order.steps_per_epoch(len(index), batch_size)
    images = _empty(len(chosen), image_size)

    def view(data: bytes | memoryview, draws: Draws) -> Tensor:
        return training_image(data, draws, image_size, augmentation, exif_orientation)[0]

    lost: dict[int, Lost] = {}  # by row
    for row, i in enumerate(chosen.tolist()):
        made = _read_or_lose(index, i, partial(view, draws=Draws(seed, epoch, i)), quarantine)
        if isinstance(made, Lost):
            lost[row] = made
        else:
            images[row] = made
    batch = Batch(images, torch.from_numpy(index.labels[chosen]).long())
    if augmentation.mixes:
        mixing.check_pairs(batch_size, world_size, accumulate)
        first = (micro_batch * world_size + rank) * len(chosen)  # its position in the global batch
        batch = _mixed(
            batch,
            [
                mixing.UNMIXED
                if row ^ 1 in lost
                else mixing.draw(
                    seed,
                    step,
                    first + row,
                    image_size,
                    image_size,
                    augmentation.mixup,
                    augmentation.cutmix,
                )
                for row in range(len(chosen))
            ],
        )
    return _without(batch, lost)


def _without(batch: Batch, lost: Mapping[int, Lost]) -> Batch:
    """The batch without the rows in `lost`."""
    if not lost:
        return batch
    rows = [row for row in range(len(batch.labels)) if row not in lost]
    keep = torch.tensor(rows if len(rows) > 1 else [], dtype=torch.int64)
    second = batch.second and (batch.second[0][keep], batch.second[1][keep])
    images = batch.images[keep].contiguous(memory_format=torch.channels_last)
    return Batch(images, batch.labels[keep], second, tuple(lost.values()))


def _mixed(batch: Batch, mixes: Sequence[mixing.Mix]) -> Batch:
    """Each image mixed with the other one of its pair, as `mixes` says."""
    images = batch.images.numpy()
    for row in range(0, len(mixes), 2):
        one, other = images[row], images[row + 1]
        images[row : row + 2] = (
            mixing.mixed(one, other, mixes[row]),
            mixing.mixed(other, one, mixes[row + 1]),
        )
    shares = torch.tensor([mix.share for mix in mixes])
    partners = batch.labels.view(-1, 2).flip(1).flatten()
    own = shares >= 0.5
    return Batch(
        batch.images,
        torch.where(own, batch.labels, partners),
        (torch.where(own, partners, batch.labels), torch.minimum(shares, 1 - shares)),
    )


def evaluation_batch(
    index: Index,
    chosen: Sequence[int],
    size: int,
    views: int = 1,
    quarantine: bool = False,
    exif_orientation: bool = False,
    fit: str = "center_crop",
) -> Batch:
    """The evaluation crops of the images `chosen`; with `quarantine` of those that can be read."""
    images = _empty(len(chosen) * views, size)
    labels: list[int] = []
    lost: list[Lost] = []

    def look(data: bytes | memoryview) -> Tensor:
        return evaluation_views(data, size, views, exif_orientation, fit)

    for i in chosen:
        made = _read_or_lose(index, i, look, quarantine)
        if isinstance(made, Lost):
            lost.append(made)
            continue
        images[len(labels) * views : (len(labels) + 1) * views] = made
        labels.append(int(index.labels[i]))
    return Batch(
        images[: len(labels) * views], torch.tensor(labels, dtype=torch.int64), lost=tuple(lost)
    )


def _empty(count: int, size: int) -> Tensor:
    shape = (count, 3, size, size)
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies while it computes."""
    return batch._replace(
        images=batch.images.pin_memory(),
        labels=batch.labels.pin_memory(),
        second=batch.second and (batch.second[0].pin_memory(), batch.second[1].pin_memory()),
    )


def travel(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. The host waits for it only on an Apple GPU.

    There PyTorch may read the host's memory after it was freed (pytorch/pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def to_device(
    images: Tensor,
    device: torch.device,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool = True,
) -> Tensor:
    """uint8 pixels to normalised float32 on the device: ((pixel / 255) - mean) / std.

    They travel as bytes, a quarter of the floats' traffic.
    """
    pixels = travel(images, device)
    pixels = pixels.float() if channels_last else pixels.contiguous().float()
    shift, scale = _constant(tuple(mean), device), _constant(tuple(std), device)
    return pixels.sub_(shift).div_(scale)


@lru_cache(maxsize=8)  # so that they travel once
def _constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # made in evaluation, it must serve training too
        return (torch.tensor(numbers).view(1, 3, 1, 1) * 255).to(device)

"""Images a second, on one core, from a file's bytes to a 224-pixel training batch.

    python scripts/benchmark_loader.py --images DIR [--rounds 7] [--json]

DIR holds class folders of JPEG photos, best a sample of the ones you train on. The contenders take
turns in one process on one thread, batch by batch, and each makes random resized crops with flips
of the same photos:

- `ours_original`, `ours_packed`, `ours_raw`: `training_batch` on the folder, and on the same photos
  packed at short side 288 as JPEG of quality 92 and as uncompressed pixels
- `torchvision_reference`: the transforms of torchvision's reference training (PIL), collated
- `torchvision_v2`: the same crop and flip by torchvision's v2 transforms on decoded uint8 tensors
- `decode_only`: torchvision's decoder on whole photos, nothing else: the bound for everybody who
  decodes whole photos

The figures are medians over the rounds of the processor time of this thread, so that other programs
on a busy machine disturb them little. `raw_bytes_read` is what a crop needs of the uncompressed
pixels, per photo and in pages of 4 KiB; `packed_bytes` and `raw_bytes` are the sizes of the files.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.transforms import v2

from googlenet_train.data.crops import random_resized_crop
from googlenet_train.data.decode import decode, image_size
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import training_batch
from googlenet_train.data.order import batch_indices
from googlenet_train.data.pack import Settings, pack
from googlenet_train.data.views import Augmentation
from googlenet_train.randomness import Draws

SIZE = 224
BATCH = 60  # at most; a batch of 256 is mapped afresh by the allocator each time, for everybody
PAPER = Augmentation("random_resized", (0.08, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
PAGE = 4096

Contender = Callable[[int], object]  # makes the batch of a step


def ours(index: Index, batch_size: int) -> Contender:
    return lambda step: training_batch(
        index, step, seed=0, batch_size=batch_size, image_size=SIZE, augmentation=PAPER
    )


def on_the_same(
    index: Index, batch_size: int, view: Callable[[int], torch.Tensor | None]
) -> Contender:
    """`view` of each photo of the batch that `ours` would make, and those collated."""

    def batch(step: int) -> None:
        views = [view(i) for i in batch_indices(0, step, len(index), batch_size).tolist()]
        images = [image for image in views if image is not None]
        if images:
            torch.stack(images)

    return batch


def torchvision_reference(index: Index) -> Callable[[int], torch.Tensor]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )

    def view(i: int) -> torch.Tensor:
        with Image.open(index.name(i)) as image:
            transformed: torch.Tensor = transform(image.convert("RGB"))
        return transformed

    return view


def torchvision_v2(index: Index) -> Callable[[int], torch.Tensor]:
    transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])

    def view(i: int) -> torch.Tensor:
        transformed: torch.Tensor = transform(decoded(index, i))
        return transformed

    return view


def decoded(index: Index, i: int) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(index.read(i)), dtype=torch.uint8)
    try:
        pixels: torch.Tensor = torch.ops.image.decode_jpeg(encoded, ImageReadMode.RGB.value, False)
    except RuntimeError:  # no JPEG, or an odd one: in ImageNet 23 of 1.28 million
        return decode(index.read(i))
    return pixels


def decode_only(index: Index) -> Callable[[int], None]:
    def view(i: int) -> None:
        decoded(index, i)

    return view


def measure(images: Path, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    original = open_source(str(images))
    batch_size = min(len(original), BATCH)
    with tempfile.TemporaryDirectory(prefix="benchmark-loader-") as folder:
        packs = {}
        for codec, quality in (("jpeg", 92), ("raw", None)):
            place = Path(folder) / codec
            pack(original, place, Settings(288, quality, codec, 256 << 20), skip_unreadable=True)
            packs[codec] = open_source(str(place))
        contenders = {
            "ours_original": ours(original, batch_size),
            "ours_packed": ours(packs["jpeg"], batch_size),
            "ours_raw": ours(packs["raw"], batch_size),
            "torchvision_reference": on_the_same(
                original, batch_size, torchvision_reference(original)
            ),
            "torchvision_v2": on_the_same(original, batch_size, torchvision_v2(original)),
            "decode_only": on_the_same(original, batch_size, decode_only(original)),
        }
        speeds = race(contenders, rounds, len(original) // batch_size, batch_size)
        sizes = {
            "packed_bytes": statistics.mean(bytes_of(packs["jpeg"])),
            "raw_bytes": statistics.mean(bytes_of(packs["raw"])),
            "raw_bytes_read": statistics.mean(bytes_of_crops(packs["raw"])),
        }
    return speeds | sizes


def race(
    contenders: dict[str, Contender], rounds: int, batches: int, batch_size: int
) -> dict[str, float]:
    """Images a second of each; in a round each makes the same `batches` batches."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first warms caches up and does not count
        spent = dict.fromkeys(contenders, 0.0)
        for step in range(turn * batches, (turn + 1) * batches):
            for name, batch in contenders.items():
                start = time.thread_time()
                batch(step)
                spent[name] += time.thread_time() - start
        if turn:
            for name, took in spent.items():
                seconds[name].append(took)
    return {
        name: batches * batch_size / statistics.median(times) for name, times in seconds.items()
    }


def bytes_of(index: Index) -> list[int]:
    return [len(index.read(i)) for i in range(len(index))]


def bytes_of_crops(index: Index) -> list[int]:
    """What the crops of one epoch need of uncompressed pixels, in whole pages."""
    needed = []
    for i in range(len(index)):
        data = index.read(i)
        height, width = image_size(data)
        box = random_resized_crop(height, width, Draws(0, 0, i), PAPER.scale, PAPER.ratio)
        start = len(data) - 3 * height * width
        first = start + 3 * (box.top * width + box.left)
        last = start + 3 * ((box.top + box.height - 1) * width + box.left + box.width)
        needed.append(PAGE * (math.ceil(last / PAGE) - first // PAGE))
    return needed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds starts at 1")
    figures = measure(given.images, given.rounds)
    reference = figures["torchvision_reference"]
    print(f"{'':<24}{'images/s':>10}{'x reference':>13}")
    for name, figure in figures.items():
        if "bytes" not in name:
            print(f"{name:<24}{figure:>10.0f}{figure / reference:>13.2f}")
    print(
        f"bytes a photo: {figures['packed_bytes']:,.0f} packed; {figures['raw_bytes']:,.0f} raw, "
        f"of which a crop reads {figures['raw_bytes_read']:,.0f}"
    )
    if given.json:
        print(json.dumps({name: round(figure, 1) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()

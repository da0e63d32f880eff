"""Pack a folder of clothing photos into the two tar shards that ship inside the package.

    python scripts/make_quickstart.py SRC [--out googlenet_train/assets/clothing]

SRC holds train/ and val/, each with one folder of photos per class. Every photo becomes a JPEG
(quality 85) with a short side of 96 pixels: turned as its EXIF says, which is then dropped, RGB,
antialiased, never enlarged. A member's name is `<class>/<key>.jpg` and the folder is the class:
there are no `.cls` files. The same photos and the same version of Pillow give the same bytes.
"""

import argparse
import io
import os
import tarfile
from pathlib import Path

from PIL import Image, ImageOps

from googlenet_train.data.index import Index, open_source

SHORT_SIDE = 96
QUALITY = 85


def shrink(photo: bytes) -> bytes:
    """Any photo to a small JPEG without metadata."""
    with Image.open(io.BytesIO(photo)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        width, height = (max(SHORT_SIDE, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    image.info.clear()  # or a JPEG comment would be written again
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def pack(index: Index, shard: Path) -> None:
    """Write the photos of a folder as one shard: sorted names, no times and no owners.

    Raises ValueError where two photos of a class differ in the ending only.
    """
    keys = [os.path.splitext(index.files.names[i])[0] for i in range(len(index))]  # noqa: PTH122
    if len(set(keys)) != len(keys):
        raise ValueError(f"two photos for {shard} share one name before the ending")
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, i in sorted(zip(keys, range(len(keys)), strict=True)):
            photo = shrink(bytes(index.read(i)))
            member = tarfile.TarInfo(f"{key}.jpg")  # time 0, owner 0, mode 0644
            member.size = len(photo)
            tar.addfile(member, io.BytesIO(photo))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("--out", type=Path, default=Path("googlenet_train/assets/clothing"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        index = open_source(str(args.src / split))
        shard = args.out / f"{split}.tar"
        pack(index, shard)
        print(f"{shard}: {len(index):,} photos, {shard.stat().st_size:,} bytes")
        for name, count in zip(index.classes, index.counts().tolist(), strict=True):
            print(f"  {name}: {count}")


if __name__ == "__main__":
    main()

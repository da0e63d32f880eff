"""Damage photos and decode them: no crash, no hang, each decoded or reported with its path.

    python scripts/fuzz_decoder.py [--files 10000] [--seed 0] [--json]

The photos are the shipped ones (JPEG) and PNGs, GIFs, WEBPs and progressive, grey and large JPEGs
made from them. Each file is damaged by a generator of its own, from (seed, number): bytes replaced,
flipped, inserted, removed or copied elsewhere, the end cut, half of the hits in the first 700
bytes, where headers lie. Each goes the way of a run: a random crop as in training, the views of an
evaluation, and all of its pixels, through the index and the loader of a folder; one that any of
these reports counts as reported. A child does the work, so that a crash is seen; one file gets 20
seconds.

Exit code 1 where a child died, a file hung, or an error was not the one kind that names the path.
"""

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from googlenet_train.data.decode import decode
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import read
from googlenet_train.data.views import Augmentation, evaluation_views, training_image
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.randomness import Draws

SECONDS_A_FILE = 20
SIZE = 64
BATCH = 250  # files a child
_AUGMENTATION = Augmentation(
    crop="random_resized", scale=(0.08, 1), ratio=(3 / 4, 4 / 3), interpolation="random", flip=0.5
)


def originals() -> dict[str, bytes]:
    """Whole files by their kind and number."""
    index = open_source("shipped:clothing/val")
    photos = [bytes(index.read(i)) for i in range(0, len(index), len(index) // 12)]
    found = {f"photo {n}.jpg": data for n, data in enumerate(photos)}
    for n, data in enumerate(photos[:4]):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        # Large enough that a crop goes to the decoder of regions, where that is installed.
        large = image.resize((400, 300), Image.Resampling.BICUBIC)
        forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
            "large": (large, "JPEG", {"quality": 85}),
            "progressive": (large, "JPEG", {"progressive": True}),
            "restart markers": (image, "JPEG", {"restart_marker_blocks": 2}),
            "grey": (image.convert("L"), "JPEG", {}),
            "cmyk": (image.convert("CMYK"), "JPEG", {}),
            "rgb": (image, "PNG", {}),
            "palette": (image.quantize(32), "PNG", {}),
            "alpha": (image.convert("RGBA"), "PNG", {}),
            "16 bit": (Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), "PNG", {}),
            "animated": (
                image.quantize(32),
                "GIF",
                {"save_all": True, "append_images": [image.quantize(16)]},
            ),
            "webp": (image, "WEBP", {"quality": 80}),
        }
        for name, (picture, kind, options) in forms.items():
            file = io.BytesIO()
            picture.save(file, kind, **options)
            found[f"{name} {n}.{kind.lower()}"] = file.getvalue()
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few random faults."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 40))):
        end = chance.choice((min(700, len(content)), len(content)))
        at = chance.randrange(end) if end else 0
        length = chance.choice((1, 1, 2, 4, 64))
        fault = chance.randrange(6)
        if fault == 0:
            content[at : at + length] = chance.randbytes(length)
        elif fault == 1 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif fault == 2:
            content[at:at] = chance.randbytes(length)
        elif fault == 3:
            del content[at : at + length]
        elif fault == 4:  # sizes and lengths at their limits
            content[at : at + 2] = chance.choice((b"\0\0", b"\xff\xff", b"\x7f\xff", b"\x80\0"))
        else:
            other = chance.randrange(len(content)) if content else 0
            content[at : at + length] = content[other : other + length]
    if chance.random() < 0.15:
        del content[chance.randrange(len(content) + 1) :]
    return bytes(content)


def look(index: Index, i: int, seed: int) -> str:
    """`decoded`, or in a word what was reported; raises where it is reported wrongly."""

    def crop(data: bytes | memoryview) -> object:
        return training_image(data, Draws(seed, 0, i), SIZE, _AUGMENTATION)

    def views(data: bytes | memoryview) -> object:
        return evaluation_views(data, SIZE, 1)

    outcome = "decoded"
    for way in (crop, views, decode):
        try:
            read(index, i, way)
        except UserError as error:
            path, _, reason = str(error).partition(": ")
            if path != index.name(i) or error.exit_code != ExitCode.DATA or len(reason) > 200:
                raise RuntimeError(f"reported wrongly: {error}") from None
            outcome = reason.split(" ")[0].strip("(,.")
    return outcome


def child(index: Index, numbers: Sequence[int], seed: int, answers: Path) -> None:
    """Look at some files; each outcome is a line, so that a crash shows at which."""
    with answers.open("w", buffering=1) as file:
        for i in numbers:
            signal.alarm(SECONDS_A_FILE)  # unhandled, it ends the process
            try:
                outcome = look(index, i, seed)
            except Exception as error:
                outcome = f"wrong: {type(error).__name__}: {error}"
            file.write(f"{i}\t{outcome}\n".replace("\n", " ").rstrip() + "\n")


def fuzz(files: int, seed: int, root: Path) -> dict[str, Any]:
    whole = list(originals().items())
    folder = root / "photos" / "damaged"
    folder.mkdir(parents=True)
    for number in range(files):
        chance = random.Random(f"{seed} {number}")
        name, data = whole[number % len(whole)]
        ending = name.rpartition(".")[2].replace("gif", "png")  # .gif is not taken for a photo
        (folder / f"{number:06d}.{ending}").write_bytes(damaged(data, chance))
    time.sleep(0.01)  # files as old as the index are taken for changed ones
    index = open_source(str(root / "photos"))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    waiting = list(range(files))
    began = time.monotonic()
    while waiting:
        batch = waiting[:BATCH]
        answers = root / "answers"
        answers.write_text("")
        process = os.fork()
        if process == 0:
            try:
                child(index, batch, seed, answers)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        lines = answers.read_text().splitlines()
        for line in lines:
            place, outcome = line.split("\t", 1)
            outcomes[outcome] += 1
            if outcome.startswith("wrong"):
                wrong.append(f"{index.name(int(place))}: {outcome}")
        waiting = waiting[len(lines) :]
        if code != 0:  # the file after the last line did it
            what = "hung" if code == -signal.SIGALRM else f"ended the process with {code}"
            wrong.append(f"{index.name(waiting[0]) if waiting else '?'}: {what}")
            outcomes[what] += 1
            waiting = waiting[1:]
    return {
        "files": files,
        "decoded": outcomes["decoded"],
        "reported": files - outcomes["decoded"] - len(wrong),
        "wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        result = fuzz(given.files, given.seed, Path(root))
    for line in result["wrong"]:
        print(line, file=sys.stderr)
    print(
        f"{result['files']} files: {result['decoded']} decoded, {result['reported']} reported, "
        f"{len(result['wrong'])} wrong, {result['seconds']} s",
        file=sys.stderr,
    )
    if given.json:
        print(json.dumps(result))
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(main())

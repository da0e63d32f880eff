"""Photos kept in memory: the same pixels as a raw pack's, whenever and by whom they were kept."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from googlenet_train import cli
from googlenet_train.data import cache as caching
from googlenet_train.data.cache import CachedFiles, open_cache
from googlenet_train.data.decode import decode
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import ahead, training_batch
from googlenet_train.data.orientation import UPRIGHT, orientation
from googlenet_train.data.pack import Settings, pack
from googlenet_train.data.views import Augmentation
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import memory

SIDE = 48
AUGMENTATION = Augmentation("random_resized", (0.2, 1.0), (0.75, 1.3333333), "bilinear", 0.5)
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of many sizes, some smaller than SIDE, a PNG, and JPEGs that lie on their side."""
    root = tmp_path_factory.mktemp("cache") / "photos"
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            height, width = generator.integers(30, 120, 2)
            noise = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((int(width), int(height)))
            if i == 7:
                image.save(root / name / f"{i}.png")
            else:
                image.save(root / name / f"{i}.jpg", exif=exif if i % 3 == 0 else Image.Exif())
    return root


def keep(index: Index, mode: str = "ram", **kwargs) -> Index:
    settings = {"short_side": SIDE, "exif_orientation": False, "available": GB, **kwargs}
    return open_cache(index, mode, **settings).photos


def epochs(index: Index, count: int = 3, first: int = 0, workers: int = 0, exif: bool = False):
    """The images of `count` epochs of 4 steps, as one tensor."""

    def make(step: int) -> torch.Tensor:
        return training_batch(
            index,
            step,
            seed=3,
            batch_size=4,
            image_size=32,
            augmentation=AUGMENTATION,
            exif_orientation=exif,
        ).images

    return torch.cat(list(ahead(make, range(4 * first, 4 * (first + count)), workers)))


def test_pixels_are_those_of_a_raw_pack(folder, tmp_path):
    index = open_source(str(folder))
    pack(index, tmp_path / "packed", Settings(SIDE, None, "raw", 10**8))
    packed = epochs(open_source(str(tmp_path / "packed")))
    assert torch.equal(epochs(keep(index)), packed)
    assert not torch.equal(epochs(index), packed)


def test_pixels_do_not_depend_on_when_or_by_whom_a_photo_is_kept(folder):
    index = open_source(str(folder))
    expected = epochs(keep(index))
    for workers in (1, 4):
        assert torch.equal(epochs(keep(index), workers=workers), expected)
    assert torch.equal(epochs(keep(index), 1, first=2), expected[-16:])  # resumed
    assert torch.equal(epochs(keep(index, available=60_000)), expected)  # room for a few
    assert torch.equal(epochs(keep(index, available=0)), expected)


def test_each_photo_is_read_once_and_no_more_is_kept_than_allowed(folder):
    index = open_source(str(folder))
    files = index.files
    reads = []

    class Counted:
        names, name, identity = files.names, files.name, files.identity

        def read(self, i):
            reads.append(i)
            return files.read(i)

    counted = replace(index, files=Counted())
    kept = keep(counted)
    reads.clear()
    epochs(kept, 3)
    assert sorted(reads) == sorted(set(reads))

    some = keep(counted, available=60_000)
    reads.clear()
    epochs(some, 3)
    assert isinstance(some.files, CachedFiles)
    size = sum(map(len, some.files.kept.values()))
    assert 20_000 < size <= 30_000
    assert len(reads) > len(set(reads))


def test_photos_are_kept_upright(folder):
    index = open_source(str(folder))
    kept = keep(index, exif_orientation=True, short_side=1000)  # nothing is shrunk
    assert {orientation(index.read(i)) for i in range(len(index))} == {UPRIGHT, 6}
    for i in range(len(index)):
        pixels = decode(kept.read(i)).permute(1, 2, 0).numpy()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(index.read(i)))).convert("RGB")
        assert np.array_equal(pixels, np.asarray(image)), index.name(i)
    assert torch.equal(
        epochs(kept, exif=True), epochs(keep(index, short_side=1000, exif_orientation=True))
    )


def test_it_says_what_fits_and_why_not(folder):
    index = open_source(str(folder))
    real = sum(len(keep(index).read(i)) for i in range(len(index)))
    needed = caching._needed(index, SIDE)
    assert needed == pytest.approx(real, abs=len(index) * 20)  # but for the headers

    def line(mode: str, available: int | None, processes: int = 1, short_side: int = SIDE):
        cache = open_cache(
            index,
            mode,
            short_side=short_side,
            exif_orientation=False,
            available=available,
            processes=processes,
        )
        assert (cache.mode == "none") == (cache.photos is index)
        return f"{cache.mode}: {cache.line}"

    photos = "16 photos at a short side of 48"
    had = "GB to be had (half of what is free)"
    assert line("auto", 4 * GB) == f"ram: {photos} are decoded once, 0.00 of the 2.00 {had}"
    assert line("auto", 2 * needed).startswith("ram: ")
    why = f"none: none: {photos} do not fit: 0.00 of the 0.00 {had}"
    assert line("auto", 2 * needed - 2) == why
    assert line("auto", 4 * needed, processes=3) == why
    rest = "; those that do not fit are decoded each time"
    assert line("ram", 2 * needed - 2).endswith(rest)
    unknown = "may not fit: this system does not say how much memory is free"
    assert line("auto", None) == f"none: none: {photos} {unknown}"
    assert line("ram", None) == f"ram: {photos} are decoded once, 0.00 GB"


def test_an_unreadable_photo_is_named_as_without(folder, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            content = (folder / name / f"{i}.jpg").read_bytes()
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(content)
    (tmp_path / "photos/cat/1.jpg").write_bytes(content[:300])
    index = open_source(str(tmp_path / "photos"))
    batch = {
        "seed": 0,
        "batch_size": 4,
        "image_size": 32,
        "augmentation": AUGMENTATION,
    }
    complaints = []
    for photos in (index, keep(index)):
        with pytest.raises(UserError) as refused:
            training_batch(photos, 0, **batch)
        complaints.append(str(refused.value))
        lost = training_batch(photos, 0, **batch, quarantine=True).lost
        complaints.append(str(lost))
    assert complaints[:2] == complaints[2:]
    assert "cat/1.jpg" in complaints[0]


# --- memory --------------------------------------------------------------------------------------


def fake(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  4000 kB\nMemAvailable:    3000 kB\nHugePages_Total: 0\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal:   4000 kB\n"}, None),
        (MEMINFO, 3_072_000),
        (  # version 2: the limit is that of the group above
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "500000\n",
                "sys/fs/cgroup/job/step/memory.stat": "anon 1\ninactive_file 7\n",
                "sys/fs/cgroup/job/memory.max": "1000000\n",
                "sys/fs/cgroup/job/memory.current": "600000\n",
                "sys/fs/cgroup/job/memory.stat": "anon 400000\ninactive_file 100000\n",
            },
            500_000,
        ),
        (  # version 1 in a container: its own group is the mount
            {
                **MEMINFO,
                "proc/self/cgroup": "4:memory:/docker/1a2b\n1:cpu:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "300000\n",
                "sys/fs/cgroup/memory/memory.stat": "cache 5\ninactive_file 0\n",
            },
            1_700_000,
        ),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "300000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 0\n",
            },
            3_072_000,
        ),
    ],
    ids=["no Linux", "an old kernel", "no groups", "version 2", "version 1", "no limit"],
)
def test_available_memory(tmp_path, files, expected):
    assert memory.available(fake(tmp_path, files)) == expected


def test_available_memory_of_this_machine():
    left = memory.available()
    assert left is None or 10**7 < left < 10**14


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_remembers_what_auto_became_and_resumes_to_the_bit(in_folder, capsys):
    def train(*words: str, rc: int = ExitCode.DONE) -> str:
        assert (
            cli.main(
                [
                    "--config",
                    "tiny.yaml",
                    "run.dir=run",
                    *words,
                    "data.val=null",
                    "data.val_fraction=0",
                ]
            )
            == rc
        )
        return capsys.readouterr().err

    settings = ["data.cache=auto", "data.cache_short_side=36"]
    assert "cache    30 photos at a short side of 36 are decoded once, 0.00 of" in train(*settings)
    assert "  cache: ram\n" in Path("run/config.yaml").read_text()
    last = Path("run/checkpoints/step-00000006.safetensors")
    expected = load_file(last)
    last.unlink()  # as a kill after the first epoch leaves it
    told = train("data.cache=none", settings[1], "--resume", rc=ExitCode.USAGE)
    assert "data.cache: ram -> none" in told
    assert "cache    30 photos" in train(*settings, "--resume")
    for name, tensor in load_file(last).items():
        assert torch.equal(tensor, expected[name]), name

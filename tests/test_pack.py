"""Packs: the folder's photos in its order, whole or not there at all, readable by others too."""

import io
import json
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from googlenet_train.data import pack_state, sidecar
from googlenet_train.data import shards as shards_module
from googlenet_train.data.crops import Box
from googlenet_train.data.decode import UndecodableImage, decode, image_size
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import Augmentation, Batch, training_batch
from googlenet_train.data.pack import Settings, pack
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.verbs import data as data_cli

AS_THEY_ARE = Settings(None, None, "jpeg", 10**9)
SHRUNKEN = Settings(40, 92, "jpeg", 30_000)
RAW = Settings(40, None, "raw", 30_000)
AUGMENTATION = Augmentation("random_resized", (0.08, 1.0), (3 / 4, 4 / 3), "random", 0.5)
PHOTOS = {  # (height, width); the short side of three of them is at most 40
    "b/wide.jpg": (60, 150),
    "b/sub/tall.JPEG": (90, 50),
    "a/small.jpg": (30, 70),
    "a/edge.jpeg": (80, 40),
    "a/two.dots.jpg": (64, 64),
    "a/two_dots.png": (64, 65),
    "a/small.bmp": (20, 20),
    "c/ünï cödé.webp": (70, 70),
    "c/" + "long" * 30 + ".jpg": (50, 60),
    **{f"c/{i}.jpg": (50 + i, 80) for i in range(9)},
}


def draw_photo(height: int, width: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "photos"
    for seed, (name, size) in enumerate(PHOTOS.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw_photo(*size, seed).save(root / name)
    return root


@pytest.fixture(scope="module")
def index(folder) -> Index:
    return open_source(str(folder))


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert caught.value.exit_code == ExitCode.DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(*words: object) -> int:
    return data_cli.main(["pack", *map(str, words)])


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def batches(index: Index) -> list[Batch]:
    """Two epochs and a bit."""
    return [
        training_batch(index, step, seed=5, batch_size=8, image_size=32, augmentation=AUGMENTATION)
        for step in range(5)
    ]


# --- what a pack holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [AS_THEY_ARE, SHRUNKEN, RAW])
def test_a_pack_keeps_order_classes_and_labels(tmp_path, index, settings):
    packed = pack(index, tmp_path / "p", settings, workers=2)
    shards = sorted((tmp_path / "p").glob("*.tar"))
    assert packed[:3] == (len(PHOTOS), len(shards), sum(path.stat().st_size for path in shards))
    if settings.shard_size < 10**6:
        assert len(shards) > 2
        assert all(path.stat().st_size <= settings.shard_size for path in shards)
    opened = open_source(str(tmp_path / "p"))
    assert opened.classes == index.classes
    assert opened.labels.tolist() == index.labels.tolist()
    for i in range(len(index)):
        original = Path(index.name(i))
        stored = opened.files.names[i]
        assert stored.startswith(f"{original.relative_to(index.files.root).parent.as_posix()}/")
        assert Path(stored).stem.replace("-2", "") == original.stem.replace(".", "_")


def test_batches_from_a_pack_are_those_of_the_folder_to_the_bit(tmp_path, index):
    pack(index, tmp_path / "p", AS_THEY_ARE._replace(shard_size=50_000))
    opened = open_source(str(tmp_path / "p"))
    assert len(opened.files.paths) > 1
    assert [opened.read(i) for i in range(len(index))] == [index.read(i) for i in range(len(index))]
    for ours, theirs in zip(batches(opened), batches(index), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("settings", [SHRUNKEN, RAW])
def test_large_photos_are_shrunken_and_others_kept(tmp_path, index, settings):
    pack(index, tmp_path / "p", settings)
    opened = open_source(str(tmp_path / "p"))
    kept = 0
    for i in range(len(index)):
        original, stored = index.read(i), bytes(opened.read(i))
        with Image.open(io.BytesIO(original)) as image:
            width, height = image.size
            if min(width, height) <= 40:
                assert stored == original
                kept += 1
                continue
            scale = 40 / min(width, height)
            size = (int(width * scale + 1e-9), int(height * scale + 1e-9))
            expected = np.asarray(
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32
            )
        with Image.open(io.BytesIO(stored)) as image:
            assert image.format == ("JPEG" if settings is SHRUNKEN else "PPM")
            difference = np.abs(np.asarray(image, dtype=np.float32) - expected)
        assert difference.mean() < 4  # JPEG's loss
        if settings is RAW:
            assert difference.max() <= 1
        assert opened.name(i).endswith(".jpg" if settings is SHRUNKEN else ".ppm")
    assert kept == 3


def test_the_bytes_do_not_depend_on_the_threads(tmp_path, index):
    for workers in (0, 1, 3):
        pack(index, tmp_path / str(workers), SHRUNKEN, workers=workers)
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "3")


def test_quality_matters(tmp_path, index):
    sizes = []
    for quality in (30, 95):
        packed = pack(index, tmp_path / str(quality), Settings(40, quality, "jpeg", 10**9))
        sizes.append(packed.size)
    assert sizes[0] < sizes[1]


def test_a_turned_photo_stays_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos/a").mkdir(parents=True)
    draw_photo(60, 90, 0).save(tmp_path / "photos/a/turned.jpg", exif=exif)
    draw_photo(60, 90, 1).save(tmp_path / "photos/a/upright.jpg")
    pack(open_source(str(tmp_path / "photos")), tmp_path / "p", SHRUNKEN)
    opened = open_source(str(tmp_path / "p"))
    orientations = []
    for i in range(2):
        with Image.open(io.BytesIO(opened.read(i))) as image:
            image.load()
            orientations.append(image.getexif().get(0x0112))
        decode(opened.read(i))
    assert orientations == [6, None]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"a\xff.jpg")
    (tmp_path / "photos/c").mkdir(parents=True)
    try:
        draw_photo(50, 50, 0).save(tmp_path / "photos/c" / name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    pack(open_source(str(tmp_path / "photos")), tmp_path / "p", AS_THEY_ARE)
    opened = open_source(str(tmp_path / "p"))
    assert opened.files.names[0] == f"c/{name}"
    assert opened.name(0) == r"shard-000000.tar:c/a\xff.jpg"


def test_a_pack_can_be_packed_again(tmp_path, index):
    pack(index, tmp_path / "first", RAW)
    pack(open_source(str(tmp_path / "first")), tmp_path / "second", AS_THEY_ARE)
    first, second = open_source(str(tmp_path / "first")), open_source(str(tmp_path / "second"))
    assert first.fingerprint() == second.fingerprint()
    assert all(first.read(i) == second.read(i) for i in range(len(index)))


@pytest.mark.filterwarnings("ignore")  # webdataset's own
def test_webdataset_reads_a_pack(tmp_path, index):
    webdataset = pytest.importorskip("webdataset")
    pack(index, tmp_path / "p", SHRUNKEN)
    urls = [str(path) for path in sorted((tmp_path / "p").glob("*.tar"))]
    fields = "jpg;png;bmp;webp"
    samples = list(
        webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple(fields, "cls")
    )
    assert [label for _, label in samples] == index.labels.tolist()
    opened = open_source(str(tmp_path / "p"))
    for i, (pixels, _) in enumerate(samples):
        assert pixels.shape[:2] == image_size(opened.read(i))


# --- raw pixels -----------------------------------------------------------------------------------


def test_crops_of_raw_pixels(tmp_path, index):
    pack(index, tmp_path / "p", RAW)
    opened = open_source(str(tmp_path / "p"))
    views = 0
    for i in range(len(opened)):
        data = opened.read(i)
        views += isinstance(data, memoryview)
        with Image.open(io.BytesIO(data)) as image:
            expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        assert image_size(data) == tuple(expected.shape[1:])
        assert torch.equal(decode(data), expected)
        assert torch.equal(decode(data, Box(3, 5, 11, 7)), expected[:, 3:14, 5:12])
    assert views == len(PHOTOS) - 3
    assert batches(opened)[0].images.shape == (8, 3, 32, 32)


def test_a_crop_of_raw_pixels_looks_at_its_rows_alone():
    height = width = 4000
    header = b"P6\n%d %d\n255\n" % (width, height)
    with mmap.mmap(-1, len(header) + height * width * 3) as pixels:
        pixels[: len(header)] = header
        view = memoryview(pixels)
        decode(view, Box(0, 0, 50, 50))  # loads what is loaded once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        crop = decode(view, Box(2000, 100, 50, 200))
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        view.release()
    assert crop.shape == (3, 50, 200)
    rows = 50 * width * 3 / mmap.PAGESIZE
    assert pages < 2 * rows < 0.1 * height * width * 3 / mmap.PAGESIZE


@pytest.mark.parametrize("data", [b"P6\n4 3\n255\n" + bytes(35), b"P6\n4 3\n255\n"])
def test_truncated_raw_pixels(data):
    with pytest.raises(UndecodableImage, match="truncated PPM"):
        decode(data)
    with pytest.raises(UndecodableImage, match="truncated PPM"):
        decode(data, Box(0, 0, 1, 1))


@pytest.mark.parametrize("kept", [600, 0])
def test_a_mapped_shard_that_is_cut_short_is_no_crash(tmp_path, index, kept):
    pack(index, tmp_path / "p", RAW)
    opened = open_source(str(tmp_path / "p"))
    i = next(i for i in range(len(opened)) if opened.name(i).endswith(".ppm"))
    if kept:
        decode(opened.read(i))  # and so it is mapped
    os.truncate(opened.files.paths[opened.files.shards[i]], kept)
    assert "the shard was changed or cut short after it was indexed" in refusal(opened.read, i)


def test_more_raw_shards_than_may_be_open(tmp_path, monkeypatch, index):
    monkeypatch.setattr(shards_module, "_MAX_OPEN", 1)
    pack(index, tmp_path / "p", RAW)
    opened = open_source(str(tmp_path / "p"))
    for i in range(len(opened)):
        decode(opened.read(i))
    assert len(opened.files.paths) > 1
    assert len(opened.files._maps) == 1


# --- stopped and gone on --------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 5, 9, 14, len(PHOTOS)])
@pytest.mark.parametrize("before_state", [False, True])
def test_a_pack_that_was_stopped_goes_on(tmp_path, monkeypatch, index, stop, before_state):
    whole = pack(index, tmp_path / "whole", SHRUNKEN)
    target = tmp_path / "p"

    class Killed(BaseException):
        pass

    def kill(photos: int) -> None:
        if photos == stop:
            raise Killed

    save = pack_state.save

    def save_or_die(folder, state):
        if before_state and state.shards:  # the shard has its name, but nobody knows
            raise Killed
        save(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(pack_state, "save", save_or_die)
        with pytest.raises(Killed):
            pack(index, target, SHRUNKEN, workers=2, progress=kill)
    finished = shard_bytes(target)
    assert finished.items() <= shard_bytes(tmp_path / "whole").items()
    assert "is not complete; run `data pack` again" in refusal(open_source, str(target))
    known = json.loads((target / "pack.json").read_text())["shards"]
    times = {name: (target / name).stat().st_mtime_ns for name, *_ in known}

    seen: list[int] = []
    assert pack(index, target, SHRUNKEN, progress=seen.append) == whole
    assert seen == list(range(known[-1][-1] if known else 0, len(index) + 1))
    assert shard_bytes(target) == shard_bytes(tmp_path / "whole")
    assert times == {name: (target / name).stat().st_mtime_ns for name in times}
    assert {path.name for path in target.iterdir()} == {*shard_bytes(target), "index.npz"}
    assert open_source(str(target)).labels.tolist() == index.labels.tolist()


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    for i in range(400):
        path = tmp_path / f"photos/{'ab'[i // 200]}/{i:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_photo(80, 80, i).save(path)
    words = ["data", "pack", "photos", "p", "--short-side", "64", "--shard-size", "60KB"]
    call = [sys.executable, "-m", "googlenet_train", *words, "--workers", "1"]
    process = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "p/shard-000002.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "p/index.npz").exists()
    source = open_source(str(tmp_path / "photos"))
    settings = Settings(64, 92, "jpeg", 60_000)
    pack(source, tmp_path / "p", settings)
    pack(source, tmp_path / "whole", settings)
    assert shard_bytes(tmp_path / "p") == shard_bytes(tmp_path / "whole")


def test_a_complete_pack_is_left_as_it_is(tmp_path, index):
    first = pack(index, tmp_path / "p", SHRUNKEN)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()}
    assert pack(index, tmp_path / "p", SHRUNKEN) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()}


def test_two_processes_do_not_pack_into_one_folder(tmp_path, index):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/pack.json.partial").touch()  # a process that was killed at its first write
    hold = "import fcntl, time; f = open('p/pack.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
    hold += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process packs into") as caught:
            pack(index, tmp_path / "p", SHRUNKEN)
        assert caught.value.exit_code == ExitCode.USAGE
        other.kill()
    pack(index, tmp_path / "p", SHRUNKEN)


# --- what is not mixed ----------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_and_other_photos_are_refused(tmp_path, folder, index, complete):
    pack(index, tmp_path / "p", SHRUNKEN)
    if not complete:
        state = sidecar.read_head(tmp_path / "p")
        (tmp_path / "p/pack.json").write_text(json.dumps(state))
        (tmp_path / "p/index.npz").unlink()
    message = refusal(pack, index, tmp_path / "p", SHRUNKEN._replace(quality=80, short_side=41))
    assert "holds a pack with other settings (short-side 40, here 41; quality 92, here 80)" in (
        message
    )
    shutil.copytree(folder, tmp_path / "more")
    shutil.copy(folder / "b/wide.jpg", tmp_path / "more/b/wider.jpg")
    other = open_source(str(tmp_path / "more"))
    assert "holds a pack of other photos (18, here 19," in refusal(
        pack, other, tmp_path / "p", SHRUNKEN
    )


def test_a_folder_with_other_things_is_refused(tmp_path, index):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/thesis.tex").touch()
    assert "holds 'thesis.tex' and no unfinished pack; give a new or empty folder" in refusal(
        pack, index, tmp_path / "p", SHRUNKEN
    )
    assert list((tmp_path / "p").iterdir()) == [tmp_path / "p/thesis.tex"] or {
        path.name for path in (tmp_path / "p").iterdir()
    } == {"thesis.tex", "pack.lock"}


# --- photos that cannot be read -------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path, folder) -> Path:
    """The photos, and two among them that are none."""
    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    (root / "a/aaa.jpg").write_bytes(b"no photo")
    (root / "c/4.jpg").write_bytes((root / "c/4.jpg").read_bytes()[:-300])
    return root


def test_unreadable_photos_are_listed_and_the_pack_waits(tmp_path, damaged, capsys):
    words = (damaged, tmp_path / "p", "--short-side", 40, "--shard-size", "30KB")
    message = refusal(command, *words)
    assert message.startswith("2 of 19 photos cannot be read, and the pack is not complete. ")
    assert "add --skip-unreadable" in message
    listed = [line for line in capsys.readouterr().err.splitlines() if "unreadable" in line]
    assert listed == [
        f"unreadable {damaged / 'a/aaa.jpg'}: not an image, or its header is damaged",
        f"unreadable {damaged / 'c/4.jpg'}: truncated JPEG",
    ]
    assert "is not complete" in refusal(open_source, str(tmp_path / "p"))
    before = shard_bytes(tmp_path / "p")
    assert command(*words, "--skip-unreadable") == ExitCode.DONE
    assert shard_bytes(tmp_path / "p") == before
    captured = capsys.readouterr()
    assert captured.out.startswith("packed   17 photos, ")
    assert captured.err.count("unreadable ") == 2
    opened = open_source(str(tmp_path / "p"))
    names = [opened.files.names[i] for i in range(len(opened))]
    assert "c/3.jpg" in names
    assert not {"a/aaa.jpg", "c/4.jpg"} & set(names)
    assert [opened.classes[label] for label in opened.labels] == [name[0] for name in names]
    # complete it is without the flag too
    assert command(*words) == ExitCode.DONE
    assert capsys.readouterr().err.count("unreadable ") == 2


@pytest.mark.parametrize("mended", [("a/aaa.jpg", "c/4.jpg"), ("c/4.jpg",)])
def test_a_mended_photo_is_taken_in(tmp_path, damaged, folder, mended):
    index = open_source(str(damaged))
    first = pack(index, tmp_path / "p", SHRUNKEN)
    assert [index.files.names[place] for place, _ in first.unreadable] == ["a/aaa.jpg", "c/4.jpg"]
    for name in mended:
        shutil.copy(folder / "c/3.jpg", damaged / name)
    index = open_source(str(damaged))
    packed = pack(index, tmp_path / "p", SHRUNKEN)
    assert len(packed.unreadable) == 2 - len(mended)
    pack(index, tmp_path / "p", SHRUNKEN, skip_unreadable=True)
    pack(index, tmp_path / "whole", SHRUNKEN, skip_unreadable=True)
    assert shard_bytes(tmp_path / "p") == shard_bytes(tmp_path / "whole")
    assert len(open_source(str(tmp_path / "p"))) == 17 + len(mended)


def test_no_photo_can_be_read(tmp_path):
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/1.jpg").write_bytes(b"no photo")
    index = open_source(str(tmp_path / "photos"))
    for _ in range(2):
        assert len(pack(index, tmp_path / "p", SHRUNKEN).unreadable) == 1
    assert "none of the photos can be read" in refusal(
        lambda: pack(index, tmp_path / "p", SHRUNKEN, skip_unreadable=True)
    )


# --- reading a pack that is not what it was -------------------------------------------------------


@pytest.fixture
def packed(tmp_path, index) -> Path:
    pack(index, tmp_path / "p", SHRUNKEN)
    return tmp_path / "p"


def test_a_shard_that_is_missing_or_cut_short_or_longer(packed):
    shard = packed / "shard-000001.tar"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    assert f"'{shard}' is cut short: {size - 1:,} bytes instead of {size:,}; copy" in refusal(
        open_source, str(packed)
    )
    os.truncate(shard, size + 1)
    assert "was changed after packing" in refusal(open_source, str(packed))
    shard.unlink()
    assert f"'{shard}' is missing; copy or pack it again" in refusal(open_source, str(packed))


def test_a_shard_with_other_contents(packed, index):
    shard = packed / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    message = f"'{shard}' was changed after packing (other contents, by SHA-256); copy or pack"
    assert message in refusal(open_source, str(packed))
    assert message in refusal(pack, index, packed, SHRUNKEN)


def test_a_copy_with_other_times_is_compared_once(tmp_path, packed, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy, copy_function=shutil.copyfile)
    os.utime(copy / "shard-000000.tar", (1, 1))
    assert open_source(str(copy)).fingerprint() == open_source(str(packed)).fingerprint()
    assert "have another time than when they were packed; comparing" in capsys.readouterr().err
    open_source(str(copy))
    assert capsys.readouterr().err == ""


def test_without_its_index_the_headers_are_read(packed, capsys):
    before = open_source(str(packed))
    (packed / "index.npz").unlink()
    after = open_source(str(packed))
    assert f"'{packed}' has no index.npz; reading the headers" in capsys.readouterr().err
    assert after.fingerprint() == before.fingerprint()
    assert after.files.offsets.tolist() == before.files.offsets.tolist()
    assert after.labels.tolist() == before.labels.tolist()


def test_an_index_of_another_version(packed, monkeypatch, index):
    monkeypatch.setattr(sidecar, "VERSION", 2)
    message = "has version 1, but this program reads version 2; pack again"
    assert message in refusal(open_source, str(packed))
    assert message in refusal(pack, index, packed, SHRUNKEN)


@pytest.mark.parametrize("kept", [0, 1, 100, -40])
def test_an_index_cut_short(packed, kept):
    path = packed / "index.npz"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"'{path}' is damaged; copy or pack it again, or delete it" in refusal(
        open_source, str(packed)
    )


def test_a_changed_byte_in_the_index_is_noticed_or_without_effect(packed):
    path = packed / "index.npz"
    data = path.read_bytes()
    before = open_source(str(packed))
    noticed = 0
    for place in range(0, len(data), 23):
        changed = bytearray(data)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            after = open_source(str(packed))
        except UserError as error:
            noticed += f"'{path}' is damaged" in str(error)
        else:
            assert after.fingerprint() == before.fingerprint()
            assert after.files.offsets.tolist() == before.files.offsets.tolist()
            assert after.files.shards.tolist() == before.files.shards.tolist()
    assert noticed > 0.4 * len(data) / 23


def test_a_damaged_state(packed, index):
    (packed / "index.npz").unlink()
    (packed / "pack.json").write_text("{")
    assert "is damaged; delete" in refusal(pack, index, packed, SHRUNKEN)


# --- the command line -----------------------------------------------------------------------------


def test_the_names_of_the_classes_come_with_them(tmp_path, folder):
    (folder / "classes.txt").write_text("the names\n")
    assert command(folder, tmp_path / "p") == ExitCode.DONE
    assert (tmp_path / "p/classes.txt").read_text() == "the names\n"
    index = open_source(str(tmp_path / "p"))
    assert index.classes == open_source(str(folder)).classes


def test_the_command(tmp_path, folder, capsys):
    assert command(folder, tmp_path / "p", "--codec", "raw", "--short-side", "40") == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.startswith("packed   18 photos, ")
    assert out.endswith(f"use      data.train={tmp_path / 'p'} (or data.val)\n")
    assert (
        sidecar.read_head(tmp_path / "p")["settings"]
        == RAW._replace(shard_size=256 * 10**6)._asdict()
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--quality", "0"], "'0' is not 1 to 100"),
        (["--short-side", "-3"], "'-3' is not pixels, or none"),
        (["--short-side", "full"], "'full' is not pixels, or none"),
        (["--shard-size", "256"], "'256' is no size such as 256MB"),
        (["--shard-size", "0MB"], "'0MB' is no size such as 256MB"),
        (["--workers", "0"], "'0' is not 1 to 1024"),
        (["--codec", "png"], "invalid choice: 'png'"),
        (["--codec", "raw", "--short-side", "none"], "--codec raw needs a short side"),
    ],
)
def test_usage(tmp_path, folder, words, complaint):
    with pytest.raises(UserError) as caught:
        command(folder, tmp_path / "p", *words)
    assert caught.value.exit_code == ExitCode.USAGE
    assert complaint in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_not_into_the_source(folder):
    with pytest.raises(UserError, match="lies inside") as caught:
        command(folder, folder / "packed")
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.slow
def test_a_run_on_a_pack_is_the_run_on_its_folder(tiny_folder, cli):
    for split in ("train", "val"):
        words = ("data", "pack", f"photos/{split}", f"packed/{split}", "--short-side", "none")
        assert cli(*words, cwd=tiny_folder).rc == ExitCode.DONE
    sources = {"folder": "photos", "pack": "packed"}
    for run, source in sources.items():
        overrides = (f"data.train={source}/train", f"data.val={source}/val", f"run.dir={run}")
        answer = cli("--config", "tiny.yaml", *overrides, cwd=tiny_folder)
        assert answer.rc == ExitCode.DONE, answer.stderr
    saved = [
        load_file(sorted((tiny_folder / run / "checkpoints").glob("*.safetensors"))[-1])
        for run in sources
    ]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])

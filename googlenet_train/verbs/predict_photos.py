"""What `predict` does: the likeliest classes of photos."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from googlenet_train.data.decode import UndecodableImage
from googlenet_train.data.loader import ahead
from googlenet_train.data.names import ending, is_hidden, is_photo, not_read
from googlenet_train.data.views import evaluation_views
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, probabilities
from googlenet_train.machine import device as devices
from googlenet_train.run.trained import open_trained

_AT_ONCE = 16  # photos that go through the network together
_MANY = 1000  # photos


def predict(run: str, photos: Sequence[str], *, which: str, kind: str, as_json: bool) -> ExitCode:
    """Print the five likeliest classes of each photo, with their probabilities in percent.

    A photo that cannot be read is named on stderr and the others go on; the exit code is then that
    of a data error.
    """
    choice = devices.choose(kind, "--device ")
    paths, endings = [], Counter[str]()
    for photo in photos:
        found, others = _photos(Path(photo))
        paths += found
        endings += others
    if endings:
        print(f"note     {not_read(endings)}", file=sys.stderr)
    trained = open_trained(run, which, choice.device)
    devices.prepare(choice.device, autotune=len(paths) > _MANY)
    setting = Setting.of(trained.config, choice.device)
    network = trained.network("ema", setting.precision)
    top = min(5, len(trained.classes))

    def look(path: Path) -> Tensor | Exception:
        try:
            return evaluation_views(
                path.read_bytes(),
                setting.image_size,
                exif_orientation=setting.exif_orientation,
                fit=setting.fit,
            )
        except (UndecodableImage, OSError) as error:
            return error

    rows, failed = [], 0
    photos_read = zip(paths, ahead(look, paths, setting.workers), strict=True)
    while group := list(itertools.islice(photos_read, _AT_ONCE)):
        views = [one for _, one in group if isinstance(one, Tensor)]
        shares = iter(probabilities(network, torch.cat(views), setting) if views else ())
        for path, one in group:
            if isinstance(one, Exception):
                failed += 1
                print(f"error    {path}: {one}", file=sys.stderr)
                continue
            p = next(shares)
            best = [(trained.names[i], 100 * float(p[i])) for i in p.topk(top).indices.tolist()]
            if as_json:
                classes = [{"class": name, "percent": round(share, 2)} for name, share in best]
                rows.append({"path": str(path), "top": classes})
            else:
                print(f"{path}: " + ", ".join(f"{name} {share:.1f} %" for name, share in best))
    if as_json:
        json.dump(rows, sys.stdout)
        print()
    return ExitCode.DATA if failed else ExitCode.DONE


def _photos(path: Path) -> tuple[list[Path], Counter[str]]:
    """The photos that `path` means, a file or a folder, and the endings of what else lies there.

    Raises UserError (data) where there is no photo.
    """
    if not path.is_dir():
        if not path.exists():
            raise UserError(
                f"no file {str(path)!r}. Give photos or folders of them.", ExitCode.DATA
            )
        return [path], Counter()
    below = sorted(p for p in path.rglob("*") if not _is_hidden(p.relative_to(path)))
    files = [p for p in below if p.is_file()]
    photos = [file for file in files if is_photo(file.name)]
    endings = Counter(ending(file.name) for file in files if not is_photo(file.name))
    if not photos:
        others = f"; {not_read(endings)}. Save photos as .jpg first" if endings else ""
        raise UserError(f"{path}: no photos in this folder or below it{others}", ExitCode.DATA)
    return photos, endings


def _is_hidden(path: Path) -> bool:
    return any(map(is_hidden, path.parts))

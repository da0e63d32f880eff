"""Pictures of what the network sees and says."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_TILE = 128  # the side of one photo on the sheet, in pixels
_LINE = 15
_GAP = 4
_RIGHT, _WRONG = "#2e7d32", "#c62828"


def contact_sheet(
    path: Path,
    images: Tensor,
    captions: Sequence[Sequence[str]],
    wrong: Sequence[bool] | None = None,
    columns: int = 8,
) -> None:
    """Write photos with captions below as one JPEG; the wrong ones framed in red.

    `images`: (N, 3, size, size) uint8. `captions`: the lines below each photo. `wrong`: per photo;
    None where there is no right and wrong.
    """
    lines = max(len(caption) for caption in captions)
    cell_width, cell_height = _TILE + 2 * _GAP, _TILE + 2 * _GAP + lines * _LINE
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for n, image in enumerate(images):
        left, top = n % columns * cell_width, n // columns * cell_height
        if wrong is not None:
            frame = (left + 1, top + 1, left + cell_width - 2, top + _TILE + 2 * _GAP - 2)
            draw.rectangle(frame, outline=_WRONG if wrong[n] else _RIGHT, width=3 * wrong[n] or 1)
        photo = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        photo = photo.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        sheet.paste(photo, (left + _GAP, top + _GAP))
        colour = "black" if wrong is None else _WRONG if wrong[n] else _RIGHT
        for row, line in enumerate(captions[n]):
            y = top + _TILE + 2 * _GAP + row * _LINE
            draw.text((left + _GAP, y), _fitted(line, font), fill=colour, font=font)
    sheet.save(path, quality=90)


def _fitted(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= _TILE:
        return line
    while line and font.getlength(line + "…") > _TILE:
        line = line[:-1]
    return line + "…"

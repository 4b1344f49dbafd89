"""Images inside a page: a query's image beside the training images that scores put first, for generators and classifiers alike.

Axes: H rows and W columns of pixels, C colours.
"""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.errors import BadInput

if TYPE_CHECKING:
    from whence.records import ScoreTable

__all__ = ["images_section", "png"]

# Pixels of the page that the longer side takes.
_SIDE, _QUERY_SIDE = 72, 128


def images_section(
    table: "ScoreTable",
    query_images: Mapping[str, Any],
    train_images: Mapping[str, Any],
    *,
    queries: Sequence[str] | None = None,
    k: int = 8,
    low: float = 0.0,
    high: float = 1.0,
    captions: Mapping[str, str] | None = None,
) -> str:
    """Per query its image and the images with the highest and the lowest scores, as HTML that loads nothing.

    Args:
        table: The scores.
        query_images: By id of a query its image: (H, W), (1, H, W), (3, H, W) or (H, W, 3) numbers.
        train_images: The same of training examples; only those that are shown have to be there.
        queries: Ids of the queries to show; None for all that have an image.
        k: Images on each side.
        low: The value of black.
        high: The value of white.
        captions: By id of a training example what stands under its image besides the score; the id itself where there is none.

    Returns:
        HTML for a section of `page`. Captions and ids are escaped.

    Raises:
        BadInput: If a query is not in the table, an image is missing or no image, or `k` or the range are not positive.
    """
    if k < 1 or not high > low:
        raise BadInput(found=f"k={k}, low={low}, high={high}", needed="1 image or more, and low below high", do="correct them")
    number_of = {name: number for number, name in enumerate(table.query_ids)}
    shown = [name for name in table.query_ids if name in query_images] if queries is None else list(queries)
    unknown = [name for name in shown if name not in number_of]
    if unknown or not shown:
        raise BadInput(
            found=f"the query {unknown[0]!r}, which the table does not have" if unknown else "no query with an image",
            needed=f"ids such as {table.query_ids[0]!r}",
            do="correct them",
        )
    captions = captions or {}

    def item(number: int, score: float) -> str:
        name = table.train_ids[number]
        picture = _picture(_image(train_images, name), low, high, _SIDE, f"training image {name}")
        return f'<figure class="picture">{picture}<figcaption>{score:+#.3g}<br>{escape(captions.get(name, name))}</figcaption></figure>'

    parts = []
    for name in shown:
        scores_N = table.scores[number_of[name]].double()
        order = scores_N.argsort(descending=True).tolist()
        # Where there are few images each is shown on one side only.
        up = order[: min(k, -(-len(order) // 2))]
        down = order[::-1][: min(k, len(order) // 2)]
        rows = "".join(
            f'<p class="muted">{label}</p><div class="pictures">{"".join(item(n, float(scores_N[n])) for n in numbers)}</div>'
            for label, numbers in (
                ("Highest scores: more weight on these raises the measurement", up),
                ("Lowest scores: more weight on these lowers it", down),
            )
            if numbers
        )
        picture = _picture(_image(query_images, name), low, high, _QUERY_SIDE, f"query {name}")
        caption = f"<figcaption>{escape(name)}</figcaption>"
        parts.append(f'<div class="asked"><figure class="picture">{picture}{caption}</figure><div>{rows}</div></div>')
    return f'{"".join(parts)}<p class="muted">Score in {escape(table.unit)}. {escape(table.method)}</p>'


def png(pixels: np.ndarray) -> bytes:
    """A PNG file (ISO 15948) of 8 bits a colour.

    Args:
        pixels: uint8, shape (H, W) for grey or (H, W, 3) for red, green and blue.

    >>> png(np.zeros((2, 2), np.uint8))[1:4]
    b'PNG'
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Every row begins with the number of its filter, 0 for none.
    content = zlib.compress(np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes(), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _image(images: Mapping[str, Any], name: str) -> np.ndarray:
    """Rows of pixels, shape (H, W) or (H, W, 3).

    Raises:
        BadInput: If there is none, or it is none.
    """
    if name not in images:
        raise BadInput(found=f"no image of {name!r}", needed="one for every example that is shown", do="add it")
    pixels = np.asarray(images[name], np.float64)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise BadInput(
            found=f"an image of {name!r} of shape {pixels.shape}",
            needed="(H, W), (1, H, W), (3, H, W) or (H, W, 3)",
            do="decode latents first, or pick three channels",
        )
    return pixels


def _picture(image: np.ndarray, low: float, high: float, side: int, words: str) -> str:
    pixels = (np.nan_to_num((image - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    data = base64.b64encode(png(pixels)).decode()
    size = f'width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}" {size}>'

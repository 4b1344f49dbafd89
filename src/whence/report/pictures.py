"""Small copies of images inside a page, which loads nothing."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from whence.plain_files import open_image

__all__ = ["picture", "small_png"]

# Pixels of the longer side; a page of twenty hits stays under a megabyte.
_SIDE = 128
# Images with few pixels, such as digits of 8 x 8, are drawn larger, each pixel a square.
_SMALL = 64


def picture(path: str) -> str:
    """An image as an `<img>` that carries its own bytes, made small; a line that says why where it cannot be shown.

    Args:
        path: The file.

    Returns:
        HTML, everything in it escaped.
    """
    name = escape(Path(path).name)
    try:
        image = open_image(path)
    except ImportError:
        return f"<p class=\"muted none\">{name}: showing images takes pip install 'whence-tda[images]'.</p>"
    except (OSError, ValueError):
        return f'<p class="muted none">{escape(path)}: no image can be read there now.</p>'
    content, (width, height) = small_png(image)
    data = base64.b64encode(content).decode()
    return f'<img class="thumbnail" src="data:image/png;base64,{data}" alt="{name}" width="{width}" height="{height}">'


def small_png(image: Any) -> tuple[bytes, tuple[int, int]]:
    """A small copy of an image, as a PNG file.

    Args:
        image: A `PIL.Image.Image`; made small itself.

    Returns:
        The file, and its width and height.
    """
    from PIL import Image

    longest = max(image.size)
    if longest > _SIDE:
        image.thumbnail((_SIDE, _SIDE))
    elif longest <= _SMALL:
        factor = _SIDE // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return content.getvalue(), image.size

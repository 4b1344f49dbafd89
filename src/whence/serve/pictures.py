"""Images that come in and go out: opened within limits, and made small."""

import io
import warnings
from typing import Any

import numpy as np

from whence.errors import BadInput, Unsupported
from whence.report.pictures import small_png
from whence.serve.limits import MOST_PIXELS

__all__ = ["check_pillow", "opened", "pixels_of", "thumbnail", "values_of"]

# What may be uploaded: the fewer decoders, the better.
_KINDS = ("PNG", "JPEG")


def check_pillow() -> None:
    """Refuse to serve images without what opens them.

    Raises:
        Unsupported: If Pillow is missing.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise Unsupported(
            found="a store of images, and no Pillow package",
            needed="it, to open and show them",
            do="pip install 'whence-tda[images]'",
        ) from error


def opened(content: bytes) -> Any:
    """An uploaded image, in RGB.

    Its size is read before it is decoded: a file of a few kilobytes may stand for gigabytes.

    Args:
        content: The file.

    Returns:
        A `PIL.Image.Image`.

    Raises:
        BadInput: If it is no PNG or JPEG, not whole, or too large.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # The limit below is lower than Pillow's.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(io.BytesIO(content), formats=_KINDS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput(found="an image that cannot be opened", needed="a PNG or JPEG file", do="save it as one") from None
    if file.width * file.height > MOST_PIXELS:
        raise BadInput(
            found=f"an image of {file.width:,} x {file.height:,} pixels",
            needed=f"at most {MOST_PIXELS:,} pixels",
            do="make it smaller",
        )
    try:
        return file.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        raise BadInput(found="an image that is not whole", needed="a whole PNG or JPEG file", do="save it again") from None


def values_of(image: Any, like: np.ndarray, low: float, high: float) -> np.ndarray:
    """An image as numbers in the shape of training images.

    Args:
        image: A `PIL.Image.Image` in RGB.
        like: A training image: (H, W), (1, H, W), (3, H, W) or (H, W, 3).
        low: The value of black.
        high: The value of white.

    Returns:
        Numbers of that shape and type.
    """
    from PIL import Image

    height, width = pixels_of(like, low, high).shape[:2]
    is_grey = like.ndim == 2 or like.shape[0] == 1
    resized = image.convert("L" if is_grey else "RGB").resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(resized, np.float64) / 255 * (high - low) + low
    if not is_grey and like.shape[0] == 3:
        values = values.transpose(2, 0, 1)
    return values.reshape(like.shape).astype(like.dtype)


def pixels_of(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Bytes of an image that is kept as numbers, shape (H, W) or (H, W, 3).

    Raises:
        Unsupported: If it has another shape than an image.
    """
    pixels = np.asarray(values, np.float64)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise Unsupported(
            found=f"training examples of shape {np.shape(values)}",
            needed="images of shape (H, W), (1, H, W), (3, H, W) or (H, W, 3)",
            do="ask the store with `whence query` or from Python",
        )
    return (np.nan_to_num((pixels - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)


def thumbnail(image: Any) -> bytes:
    """A small PNG of an image, or of its pixels as `pixels_of` gives them."""
    from PIL import Image

    return small_png(Image.fromarray(image) if isinstance(image, np.ndarray) else image)[0]

"""Records whose input is an image in a file: named by its path, identified by its bytes, opened when its batch is made."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whence.data import Example
from whence.errors import BadInput
from whence.plain_files import IMAGE_BYTES, open_image, open_plain

__all__ = ["Preprocess", "image_inputs", "image_path", "image_sha256", "prepared_image"]

Preprocess = Callable[[Any], Tensor | np.ndarray | Mapping[str, Any]]
"""From a `PIL.Image.Image` in RGB to the model's input, or to a mapping of its keyword inputs. The same image gives the same result."""


def image_path(value: Any) -> Path | None:
    """The file that a record's `image` names, absolute; None if it is no path but, say, a tensor."""
    if not isinstance(value, str | Path):
        return None
    try:
        return Path(value).resolve()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # half of a surrogate pair, a zero byte, a circle of links: read as it is, and refused there
        return Path(value)


def image_sha256(number: int, path: Path) -> str:
    """SHA-256 of an image file, which stands for its content in a dataset's fingerprint.

    Args:
        number: Of the record, for the error.
        path: The file.

    Raises:
        BadInput: If it cannot be read.
    """
    try:
        with open_plain(path, at_most=IMAGE_BYTES, is_named=True) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise BadInput(
            found=f"record {number} with the image {path}, which cannot be read ({getattr(error, 'strerror', None) or error})",
            needed="an image file",
            do="check the path; in a .jsonl or .csv file it counts from that file's folder",
        ) from error


def image_inputs(example: Example, preprocess: Preprocess | None) -> dict[str, Any]:
    """The model's inputs from an example's image.

    Args:
        example: With the path of an image.
        preprocess: What turns the image into inputs; None for all three channels between 0 and 1, shape (3, height, width).

    Returns:
        By keyword; under `inputs` if there is one without a name.

    Raises:
        BadInput: If Pillow is missing or the file is no image.
    """
    try:
        image = open_image(example.image)
    except ImportError as error:
        raise BadInput(found="no Pillow package", needed="it, to open images", do="pip install 'whence-tda[images]'") from error
    except (OSError, ValueError) as error:
        raise BadInput(
            found=f"the image {example.image}, which cannot be opened ({(str(error).splitlines() or [''])[0]})",
            needed="a whole image of a kind that Pillow reads",
            do="mend the file or drop its record",
        ) from error
    return prepared_image(image, preprocess)


def prepared_image(image: Any, preprocess: Preprocess | None) -> dict[str, Any]:
    """The model's inputs from an opened image; arguments and result as in `image_inputs`."""
    if preprocess is None:
        return {"inputs": np.asarray(image, np.float32).transpose(2, 0, 1) / 255}
    prepared = preprocess(image)
    return dict(prepared) if isinstance(prepared, Mapping) else {"inputs": prepared}

"""Images in pages: the pixels that were given, in the order of the scores, nothing run and nothing fetched."""

import base64
import re
import struct
import zlib

import numpy as np
import pytest
import torch

from whence.errors import BadInput
from whence.records import ScoreTable
from whence.report import images_section, page, png

TABLE = ScoreTable(
    torch.tensor([[0.1, -0.5, 2.0, 0.3, -0.1]]), ("made <1>",), ("a", "b", "c<br>", "d", "e"), "units & more", "ekfac <i>"
)
IMAGES = {name: np.full((1, 2, 3), place / 4) for place, name in enumerate(TABLE.train_ids)}


def decoded(data: bytes) -> np.ndarray:
    """Pixels of a PNG without filters, read chunk by chunk."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + content)
        parts[kind] = content
        at += 12 + size
    width, height, _, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape((height, width) if colour == 0 else (height, width, 3))


@pytest.mark.parametrize("shape", [(2, 5), (4, 3, 3)])
def test_a_png_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(decoded(png(pixels)), pixels)


def test_images_stand_in_the_order_of_their_scores():
    found = images_section(TABLE, {"made <1>": np.zeros((2, 3))}, IMAGES, k=2, captions={"d": "a <b>3</b>"})
    assert re.findall(r"<figcaption>(.*?)</figcaption>", found) == [
        "made &lt;1&gt;", "+2.00<br>c&lt;br&gt;", "+0.300<br>a &lt;b&gt;3&lt;/b&gt;", "-0.500<br>b", "-0.100<br>e"
    ]  # fmt: skip
    shown = [decoded(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]*)", found)]
    assert [int(pixels[0, 0]) for pixels in shown] == [0, 128, 191, 64, 255]
    assert shown[0].shape == (2, 3)
    assert "units &amp; more. ekfac &lt;i&gt;" in found
    assert "script" not in page("t", [("h", found)]) and "http" not in found


def test_few_images_are_shown_once_and_colours_are_kept():
    images = {name: np.stack([np.full((2, 2), value) for value in (1.0, -1.0, 0.0)]) for name in TABLE.train_ids}
    found = images_section(TABLE, {"made <1>": images["a"]}, images, k=50, low=-1.0)
    assert found.count("training image") == 5
    pixels = decoded(base64.b64decode(re.search(r"base64,([^\"]*)", found)[1]))
    assert pixels[0, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 0}, "found k=0, low=0.0, high=1.0; needed 1 image or more"),
        ({"high": 0.0}, "found k=8, low=0.0, high=0.0"),
        ({"queries": ["other"]}, "the query 'other', which the table does not have; needed ids such as 'made <1>'"),
        ({"query_images": {}}, "no query with an image"),
        ({"train_images": {}}, "no image of 'c<br>'; needed one for every example that is shown"),
        ({"query_images": {"made <1>": np.zeros((4, 4, 4))}}, "an image of 'made <1>' of shape (4, 4, 4)"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, text):
    given = {"query_images": {"made <1>": np.zeros((2, 3))}, "train_images": IMAGES, **options}
    with pytest.raises(BadInput) as caught:
        images_section(TABLE, **given)
    assert text in str(caught.value)

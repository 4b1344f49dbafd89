"""Records with paths of images: read, identified, refused, kept in a store and shown on pages."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.errors import BadInput
from whence.load import load_records
from whence.report import Hit, Hits, hits_fragment

Image = pytest.importorskip("PIL.Image")


def gray(image):
    """Prepared as the model was trained: one channel, in [-1, 1]."""
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32))[None] / 127.5 - 1


def keywords(image):
    return {"pixel_values": gray(image)}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 2)

    def forward(self, pixel_values):
        return self.layer(pixel_values.flatten(1))


@pytest.fixture
def folder(tmp_path):
    """Six images in two folders, one per class."""
    generator = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{number}.png")
    return tmp_path / "data"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))


def test_a_folder_of_classes_is_data(folder):
    records = load_records(str(folder))
    assert [(record["id"], record["label"]) for record in records][2:4] == [("cat/2.png", "cat"), ("dog/0.png", "dog")]
    task = whence.Classification(model(), preprocess=gray, labels=["cat", "dog"])
    dataset = task.prepare(records)
    assert dataset.ids[0] == "cat/0.png" and dataset.examples[5].source == "dog"
    batch = task.collate(dataset.examples)
    assert batch["target"].tolist() == [0, 0, 0, 1, 1, 1]
    wanted = torch.stack([gray(Image.open(folder / name)) for name in dataset.ids])
    assert torch.equal(batch["inputs"]["inputs"], wanted)


def test_keyword_inputs_and_no_preprocessing(folder):
    path = folder / "cat" / "0.png"
    records = [{"image": path, "label": 1}]
    named = whence.Classification(Named(), preprocess=keywords)
    assert torch.equal(named.collate(named.prepare(records).examples)["inputs"]["pixel_values"][0], gray(Image.open(path)))
    plain = whence.Classification(model())
    dataset = plain.prepare(records)
    assert dataset.ids == (str(path),)
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    assert torch.equal(plain.collate(dataset.examples)["inputs"]["inputs"][0], pixels)
    assert named.preprocessing != whence.Classification(Named(), preprocess=gray).preprocessing != plain.preprocessing == ""


def test_regression_on_images(folder):
    task = whence.Regression(nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), preprocess=gray)
    records = [{"image": str(path), "target": 0.5} for path in sorted((folder / "cat").iterdir())]
    table = whence.attribute(task, records, records[:1], method="grad-dot-exact", runtime=QUIET)
    assert table.scores.shape == (1, 3) and table.train_ids == tuple(map(str, sorted((folder / "cat").iterdir())))


def test_the_fingerprint_is_that_of_the_bytes(folder, tmp_path):
    task = whence.Classification(model(), preprocess=gray, labels=["cat", "dog"])
    before = task.prepare(load_records(str(folder))).fingerprint
    folder.rename(tmp_path / "moved")
    moved = load_records(str(tmp_path / "moved"))
    assert task.prepare(moved).fingerprint == before
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "moved" / "cat" / "0.png")
    assert task.prepare(moved).fingerprint != before


def test_paths_in_a_file_count_from_its_folder(folder):
    lines = [{"image": f"cat/{number}.png", "label": 0} for number in range(3)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    records = load_records(str(folder / "train.jsonl"))
    assert records[1] == {"id": "cat/1.png", "image": str(folder / "cat" / "1.png"), "label": 0}
    (folder / "train.csv").write_text("image,label\ncat/0.png,1\n")
    assert load_records(str(folder / "train.csv"))[0]["image"] == str(folder / "cat" / "0.png")


def test_custom_tasks_keep_the_path(folder):
    def open_all(records):
        return {"inputs": torch.stack([gray(Image.open(record["image"])) for record in records])}

    path = folder / "cat" / "0.png"
    task = whence.Custom(model(), lambda m, batch: m(batch["inputs"]).square().sum(1), collate=open_all)
    (example,) = task.prepare([{"image": path}]).examples
    assert example.image == str(path) and torch.isfinite(task.loss(task.model, task.collate([example]))).all()


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("none.png", {}, r"record 0 with the image .*none.png, which cannot be read \(No such file"),
        ("broken.png", {}, r"image .*broken.png, which cannot be opened \(cannot identify.*; .* drop its record"),
        ("cat/0.png", {"age": 3}, "record 0 with an image and 'age'; needed the image as the only input"),
        ("cat/0.png", {"label": "bird"}, "record 0 with the label 'bird'; needed one class number from 0, or one of cat, dog"),
    ],
)
def test_images_that_cannot_be_used(folder, name, more, text):
    (folder / "broken.png").write_bytes(b"no image")
    task = whence.Classification(model(), preprocess=gray, labels=["cat", "dog"])
    with pytest.raises(BadInput, match=text):
        task.collate(task.prepare([{"image": str(folder / name), "label": 0, **more}]).examples)


def test_images_of_different_sizes(folder):
    Image.new("RGB", (5, 6)).save(folder / "cat" / "9.png")
    task = whence.Classification(model(), preprocess=gray)
    examples = task.prepare([{"image": str(folder / "cat" / f"{n}.png"), "label": 0} for n in (0, 9)]).examples
    with pytest.raises(BadInput, match="different shapes .*resize images in preprocess"):
        task.collate(examples)


def test_random_augmentation_is_refused(folder):
    def noisy(image):
        return gray(image) + torch.rand(())

    task = whence.Classification(model(), preprocess=noisy, labels=["cat", "dog"])
    with pytest.raises(BadInput, match="changes from call to call"):
        whence.attribute(task, load_records(str(folder)), load_records(str(folder))[:1], method="grad-dot-exact", runtime=QUIET)


def test_from_a_store_to_a_page(folder, tmp_path):
    task = whence.Classification(model(), preprocess=gray, labels=["cat", "dog"])
    records = load_records(str(folder))
    whence.build(task, records, tmp_path / "store", config=whence.BuildConfig(method="logra", rank=4), runtime=QUIET)
    hits = whence.query(tmp_path / "store", task, records[:1], k=2, runtime=QUIET)
    shown = hits.proponents[0][0]
    assert shown.image == str(folder / shown.id) and hits.query_images == (str(folder / "cat/0.png"),)
    assert hits.to_dict()["queries"][0]["proponents"][0]["image"] == shown.image
    page = hits_fragment(hits)
    pictures = re.findall(r'<img class="thumbnail" src="data:image/png;base64,([^"]+)" alt="([^"]+)" width="126"', page)
    assert len(pictures) == 1 + len(hits.proponents[0]) + len(hits.opponents[0])
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0][0]))))
    assert np.array_equal(drawn[::21, ::21], np.asarray(Image.open(folder / "cat" / "0.png")))
    assert "keeps no text" not in page


def test_a_page_without_its_images(tmp_path):
    path = str(tmp_path / "<b>gone</b>.png")
    hit = Hit("one", 0, 1.0, text="<i>words</i>", image=path)
    page = hits_fragment(Hits(("q",), ((hit,),), ((),), (1.0,), "u", "m", 1, query_images=("",)))
    assert "&lt;b&gt;gone&lt;/b&gt;.png: no image can be read there now" in page and "<b>gone" not in page
    assert "&lt;i&gt;words" in page and "<img" not in page


def test_large_images_become_small(tmp_path):
    Image.new("RGB", (900, 300), (10, 20, 30)).save(tmp_path / 'a"b.png')
    hit = Hit("one", 0, 1.0, image=str(tmp_path / 'a"b.png'))
    page = hits_fragment(Hits(("q",), ((hit,),), ((),), (1.0,), "u", "m", 1))
    assert 'alt="a&quot;b.png" width="128" height="43"' in page and len(page) < 40_000


def test_without_pillow(folder, monkeypatch):
    task = whence.Classification(model(), preprocess=gray)
    examples = task.prepare([{"image": str(folder / "cat" / "0.png"), "label": 0}]).examples
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(BadInput, match=r"no Pillow package; .*pip install 'whence-tda\[images\]'"):
        task.collate(examples)
    page = hits_fragment(Hits(("q",), ((Hit("one", 0, 1.0, image=examples[0].image),),), ((),), (1.0,), "u", "m", 1))
    assert "0.png: showing images takes pip install" in page

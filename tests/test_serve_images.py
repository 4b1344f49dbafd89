"""The service on classifiers and diffusion models: answers are those of `whence.query`, uploads are opened within limits."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from torch import nn

import whence
from tests.settings import QUIET
from whence.cli import main
from whence.errors import BadInput, Unsupported
from whence.load import load_task
from whence.serve.app import create_app
from whence.serve.client import HitFilter
from whence.serve.config import ServeConfig
from whence.serve.hosted_store import HostedStore
from whence.serve.pictures import pixels_of, values_of

Image = pytest.importorskip("PIL.Image")

BUILD = {"method": "logra", "rank": 4, "dtype": "float32"}
LABELS = ["cat", "dog"]


def gray(image):
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32))[None] / 127.5 - 1


def classifier(inputs=36):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2))


class Texts(nn.Module):
    """Mean of the embedded tokens, then classes."""

    def __init__(self, vocabulary):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


class Denoiser(nn.Module):
    """Two convolutions, told the time and the class."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.time, self.label = nn.Linear(1, 4), nn.Embedding(3, 4)

    def forward(self, images, times, labels):
        told = self.time(times[:, None].to(images.dtype) / 1000) + self.label(labels)
        return self.last(torch.tanh(self.first(images) + told[:, :, None, None]))


def file_of(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six images in two folders, one per class."""
    place, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind in LABELS:
        (place / kind).mkdir()
        for number in range(3):
            Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(place / kind / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def files(pictures, tmp_path_factory):
    """A desk of images in files."""
    task = whence.Classification(classifier(), preprocess=gray, labels=LABELS)
    records = [
        {"image": str(path), "label": path.parent.name, "id": f"{path.parent.name}/{path.name}", "source": path.parent.name}
        for path in sorted(pictures.rglob("*.png"))
    ]
    store = whence.build(
        task, records, tmp_path_factory.mktemp("files") / "store", config=whence.BuildConfig(**BUILD), runtime=QUIET
    )
    return HostedStore.load("files", store, task)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A desk of a diffusion model on arrays between -1 and 1, with labels."""
    torch.manual_seed(0)
    task = whence.Diffusion(Denoiser().eval(), noised=whence.tasks.Draws(draws=4))
    generator = torch.Generator().manual_seed(1)
    records = [
        {"image": torch.rand(1, 4, 4, generator=generator) * 2 - 1, "label": number % 3, "id": f"d{number}"}
        for number in range(5)
    ]
    data = task.prepare(records)
    return HostedStore.load(
        "drawn",
        whence.build(task, data, tmp_path_factory.mktemp("drawn") / "store", config=whence.BuildConfig(**BUILD), runtime=QUIET),
        task,
        train=data,
    )


@pytest.fixture(scope="module")
def texts(model_folder, tmp_path_factory):
    """A desk of a classifier of texts."""
    tokenizer = load_task(str(model_folder))[0].tokenizer
    task = whence.Classification(Texts(len(tokenizer)), tokenizer, labels=LABELS)
    records = [
        {"id": f"t{n}", "text": text, "label": n % 2} for n, text in enumerate(("a cat", "a dog ran", "cats sit", "no dog"))
    ]
    return HostedStore.load(
        "texts",
        whence.build(
            task, records, tmp_path_factory.mktemp("texts") / "store", config=whence.BuildConfig(**BUILD), runtime=QUIET
        ),
        task,
    )


@pytest.fixture
def service(files, drawn, texts):
    opened = []

    def make(**options):
        client = TestClient(
            create_app([files, drawn, texts], ServeConfig(**{"log": ":memory:", **options})),
            base_url="http://127.0.0.1", raise_server_exceptions=False,
        )  # fmt: skip
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def posted(client, store, body, status=200, verb="attribute-item"):
    response = client.post(f"/v1/stores/{store}/{verb}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def assert_same(found, wanted):
    (query,) = wanted.to_dict()["queries"]
    for side in ("proponents", "opponents"):
        assert [hit["id"] for hit in found[side]] == [hit["id"] for hit in query[side]]
        assert [hit["score"] for hit in found[side]] == pytest.approx([hit["score"] for hit in query[side]], rel=1e-4)
    assert found["measurement"] == pytest.approx(query["measurement"], rel=1e-5)


def test_an_uploaded_image_is_asked_about_as_a_file_is(service, files, pictures):
    client, path = service(), pictures / "dog" / "1.png"
    found = posted(client, "files", {"image": encoded(path.read_bytes()), "label": "cat", "k": 3})
    warm = files.prepared
    assert_same(found, whence.query(warm.store, warm.task, [{"image": str(path), "label": 0}], k=3, runtime=QUIET))
    assert (found["item"]["label"], found["item"]["is_predicted"], found["completion"]) == ("cat", False, "cat")
    stored = posted(client, "files", {"example": "dog/1.png", "label": 0, "k": 3})
    assert [hit["score"] for hit in stored["proponents"]] == pytest.approx([hit["score"] for hit in found["proponents"]])
    own = posted(client, "files", {"image": encoded(path.read_bytes())})
    wanted = LABELS[int(warm.task.model(gray(Image.open(path))[None]).argmax())]
    assert own["item"] == {**own["item"], "label": wanted, "is_predicted": True}


def test_images_go_out_small(service, pictures):
    client = service()
    content = (pictures / "dog" / "1.png").read_bytes()
    found = posted(client, "files", {"image": encoded(content), "k": 2})
    again = client.get(f"/v1/answers/{found['id']}").json()
    assert again == found and "thumbnail" not in again["item"]
    for place in (found["item"]["image"], found["proponents"][0]["image"]):
        response = client.get("/" + place)
        assert response.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(response.content))
        assert max(image.size) <= 128 and image.format == "PNG"
    asked = Image.open(io.BytesIO(client.get("/" + found["item"]["image"]).content)).convert("RGB")
    # Each pixel of a small image is a square.
    assert (np.asarray(asked)[::21, ::21] == np.asarray(Image.open(io.BytesIO(content)))).all()
    for place in ("/v1/stores/files/images/nope", "/v1/answers/nope/image", "/v1/stores/texts/images/t0"):
        assert client.get(place).status_code == 404


def test_a_diffusion_model_is_asked_about_an_example_and_an_upload(service, drawn):
    client, warm = service(), drawn.prepared
    train = drawn.reader.examples
    found = posted(client, "drawn", {"example": "d2", "k": 2})
    record = {"image": train[2].fields["image"], "label": 2, "id": "question"}
    assert_same(found, whence.query(warm.store, warm.task, [record], k=2, runtime=QUIET))
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    uploaded = posted(client, "drawn", {"image": encoded(file_of(pixels)), "label": 1, "k": 2})
    record = {"image": pixels[None] / np.float32(127.5) - 1, "label": 1, "id": "question"}
    assert_same(uploaded, whence.query(warm.store, warm.task, [record], k=2, runtime=QUIET))
    told = posted(client, "drawn", {"image": encoded(file_of(pixels))}, 400)
    assert told["error"]["found"] == "an image without a label"
    shown = Image.open(io.BytesIO(client.get("/" + found["proponents"][0]["image"]).content))
    values = train[int(found["proponents"][0]["id"][1:])].fields["image"][0]
    assert np.abs(np.asarray(shown)[::32, ::32] - (values + 1) * 127.5).max() <= 0.51


def test_a_classifier_of_texts(service, texts):
    client, warm = service(), texts.prepared
    found = posted(client, "texts", {"text": "a cat ran", "label": "dog", "k": 2})
    assert_same(found, whence.query(warm.store, warm.task, [{"text": "a cat ran", "label": 1}], k=2, runtime=QUIET))
    assert found["prompt"] == "a cat ran" and found["proponents"][0]["text"]
    answer = whence.query(warm.store, warm.task, [{"text": "a cat ran", "label": 1}], k=2, runtime=QUIET).to_dict()["queries"][
        0
    ]
    assert (found["item"]["label"], found["item"]["predicted"]) == ("dog", answer["predicted"])
    for side in ("proponents", "opponents"):
        for hit, wanted in zip(found[side], answer[side], strict=True):
            assert all(hit[name] == wanted[name] for name in ("label", "predicted", "is_disputed"))
    assert {hit["label"] for side in ("proponents", "opponents") for hit in found[side]} <= set(LABELS)
    assert client.get("/v1/stores/texts").json()["labels"] == LABELS


def test_the_client_asks_about_items(service, pictures, monkeypatch):
    inside, client = service(), whence.serve.Client("http://127.0.0.1:1")
    monkeypatch.setattr(
        client, "_answer_to", lambda store, verb, body, chosen, _: posted(inside, store, body | chosen, verb=verb)
    )
    path = pictures / "dog" / "1.png"
    found = [
        client.attribute_item(image=image, label="cat", k=3, store="files", among=HitFilter(sources=["dog"]))
        for image in (path, path.read_bytes())
    ]
    assert found[0]["proponents"] == found[1]["proponents"] and found[0]["num_allowed"] == 3
    assert client.attribute_item(text="a cat", store="texts")["prompt"] == "a cat"
    assert client.attribute_item(example="d1", store="drawn")["item"]["label"] == "1"
    with pytest.raises(BadInput, match="found the image .*none.png, which cannot be read"):
        client.attribute_item(image=pictures / "none.png")


def test_questions_of_another_kind_are_refused(service):
    client = service(max_image_bytes=3000)
    image = encoded(file_of(np.zeros((4, 4), np.uint8)))
    large = encoded(file_of(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    gif = encoded(file_of(np.zeros((4, 4), np.uint8), "GIF"))
    whole = file_of(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    cases = [
        ("texts", {"image": image}, "an image for the store texts"),
        ("files", {"text": "a"}, "a text and its label for the store files"),
        ("files", {}, "nothing to ask about"),
        ("files", {"image": image, "example": "x"}, "image and example"),
        ("files", {"image": "?"}, "an image that is not in base64"),
        ("files", {"image": encoded(b"no image")}, "an image that cannot be opened"),
        ("files", {"image": gif}, "an image that cannot be opened"),
        ("files", {"image": encoded(whole[: len(whole) // 2])}, "an image that is not whole"),
        ("files", {"image": large}, "an image of 4,"),
        ("files", {"image": encoded(file_of(np.zeros((40, 40), np.uint8)))}, "an input of shape (1, 40, 40), which the model"),
        (
            "files",
            {"image": encoded(file_of(np.zeros((4, 4), np.uint8))), "label": 1},
            "an input of shape (1, 4, 4), which the model",
        ),
        ("files", {"example": "bird/0.png"}, "no training example 'bird/0.png'"),
        ("files", {"example": "cat/1.png", "label": "bird"}, "the label 'bird'"),
        ("files", {"example": "cat/0.png", "label": 7}, "the label 7"),
    ]
    for store, body, told in cases:
        assert posted(client, store, body, 400)["error"]["found"].startswith(told), body
    told = posted(client, "files", {"prompt": "a", "completion": "b"}, 400, "attribute")
    assert told["error"]["do"] == "use attribute-item with image or example"
    assert client.post("/v1/stores/files/attribute-item", json={"image": "A" * 200_000}).status_code == 413


def test_a_small_file_of_a_huge_image_is_not_decoded(service):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def bomb(side):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")

    client = service()
    for side, told in ((60_000, "an image that cannot be opened"), (5_000, "an image of 5,000 x 5,000 pixels")):
        assert posted(client, "files", {"image": encoded(bomb(side))}, 400)["error"]["found"] == told


def test_redacted_services_show_no_image(service, pictures, tmp_path):
    log = str(tmp_path / "log.sqlite")
    before = posted(service(log=log), "files", {"example": "cat/0.png"})
    client = service(redacted=True, log=log)
    assert "image" in before["item"] and "image" not in client.get(f"/v1/answers/{before['id']}").json()["item"]
    found = posted(client, "files", {"image": encoded((pictures / "cat" / "0.png").read_bytes())})
    for hit in found["proponents"] + found["opponents"]:
        assert set(hit) == {"id", "row", "score", "source"}
    assert client.get("/v1/stores/files/images/cat/0.png").status_code == 404
    assert client.get("/" + found["item"]["image"]).status_code == 200  # the asker's own
    told = posted(client, "files", {"example": "cat/0.png"}, 400)["error"]["found"]
    assert told == "a training example as the question on a redacted service"


def test_pixels():
    values = np.array([[0.0, 0.5], [1.0, np.nan]])
    for shaped in (values, values[None], np.stack([values] * 3), np.stack([values] * 3, 2)):
        pixels = pixels_of(shaped, 0.0, 1.0)
        assert pixels.reshape(2, 2, -1)[..., 0].tolist() == [[0, 128], [255, 0]]
        image = Image.fromarray(pixels).convert("RGB")
        assert np.abs(values_of(image, shaped, 0.0, 1.0) - np.nan_to_num(shaped)).max() < 0.01
    with pytest.raises(Unsupported, match=r"found training examples of shape \(2, 2, 5\)"):
        pixels_of(np.zeros((2, 2, 5)), 0, 1)


def test_mistakes_of_who_starts_it(files, drawn, tmp_path):
    warm = files.prepared
    with pytest.raises(BadInput, match="found pixels from 0 to 1 for"):
        HostedStore.load("files", warm.store, warm.task, pixels=(0.0, 1.0))
    with pytest.raises(BadInput, match="found pixels from 1 to 1 for"):
        HostedStore.load(
            "d", drawn.prepared.store, drawn.prepared.task, train=whence.data.Dataset(drawn.reader.examples), pixels=(1.0, 1.0)
        )


MODEL = """
import torch, numpy as np, whence
from torch import nn

def images():
    generator = torch.Generator().manual_seed(0)
    return [{"inputs": torch.rand(1, 4, 4, generator=generator).numpy(), "label": n % 2, "id": f"n{n}"} for n in range(6)]

def task():
    torch.manual_seed(0)
    return whence.Classification(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
"""


def test_serve_finds_the_images_of_a_store(tmp_path, monkeypatch, capsys):
    from whence.serve import run as run_module

    (tmp_path / "model.py").write_text(MODEL)
    place = tmp_path / "store"
    model, data = f"{tmp_path / 'model.py'}:task", f"{tmp_path / 'model.py'}:images"
    assert main(["build", "--model", model, "--data", data, "--output", str(place), "--method", "logra", "--rank", "2"]) == 0
    (tmp_path / "questions.jsonl").write_text('{"example": "n2", "label": 1}\n')
    apps = []
    monkeypatch.setattr(run_module, "run_app", lambda app, *_: apps.append(app))
    log = ["--log", ":memory:", "--questions", str(tmp_path / "questions.jsonl")]
    assert main(["serve", str(place), "--trust", *log, "--pixels", "0", "2"]) == 0
    with TestClient(apps[0], base_url="http://127.0.0.1") as client:
        facts = client.get("/v1/stores/store").json()
        assert (facts["kind"], facts["questions"][0]["example"]) == ("image", "n2")
        found = posted(client, "store", {"example": "n2", "k": 2})
        assert client.get("/" + found["item"]["image"]).status_code == 200
    capsys.readouterr()

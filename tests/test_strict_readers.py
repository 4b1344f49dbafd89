"""Readers of what lies in folders: arrays, tensors, records, images and data files of strangers, read whole or refused."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import whence
from tests.settings import QUIET
from tests.test_store import make_records, make_task
from tests.torture.jobs import recorded
from whence.errors import BadInput, StoreCorrupt
from whence.load import load_records
from whence.plain_files import open_image
from whence.store import read_array, read_record, read_tensors, sha256_of, write_record, write_tensors
from whence.store.file_sets import array_chunks
from whence.store.files import read_lines, read_mapped, tensor_shapes, write_bytes
from whence.store.row_files import RowFile

HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


def npy(kind, shape, body, version=1):
    text = HEADER.format(kind, shape).ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + body


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)), np.zeros((0, 5), np.float32),
        np.array([True, False]), np.arange(3, dtype=">i8"), np.float16([1.5, -2]), np.uint8([7]), np.array(3.5),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)  # fmt: skip
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy").numpy()
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=") and np.array_equal(found, array)
    write_bytes(tmp_path / "b.npy", array_chunks(array))
    assert np.array_equal(read_array(tmp_path / "b.npy").numpy(), array)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (npy("<f8", "(1000000000, 1000000000)", b"\0" * 16), "16 bytes of numbers, not those of float64 of shape"),
        (npy("<f8", "(2,)", b"\0" * 15), "15 bytes of numbers"),
        (npy("<f8", "(2,)", b"\0" * 17), "17 bytes of numbers"),
        (npy("|O", "(1,)", pickle.dumps(1)), "not plain numbers"),
        (npy("<U2", "(1,)", b"\0" * 8), "not plain numbers"),
        (npy("<f1", "(1,)", b"\0"), "not plain numbers"),
        (npy("<f8", "(-1,)", b""), "its shape is"),
        (npy("<f8", "(True,)", b"\0" * 8), "its shape is"),
        (npy("<f8", "[1]", b"\0" * 8), "its shape is"),
        (npy("|b1", "(2,)", b"\2\1"), "truth values that are neither 0 nor 1"),
        (npy("<f8", "__import__('os')", b""), "its header cannot be read"),
        (npy("<f8", "(" * 200, b""), "its header cannot be read"),
        (npy("<f8", "(0,)", b"", version=9), "not in NumPy's format"),
        (b"\x93NUMPY\x01\x00\xff\xff", "its header is not there"),
        (b"", "not in NumPy's format"),
    ],
)
def test_arrays_that_are_none(tmp_path, content, why):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(StoreCorrupt, match=why):
        read_array(tmp_path / "a.npy")


def test_tensors_are_read_as_safetensors_reads_them(tmp_path):
    wanted = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.tensor([True]),
        "d": torch.empty(0, 2),
        "e": torch.randn(2).bfloat16(),
    }
    save_file(wanted, tmp_path / "a.safetensors")
    write_tensors(tmp_path / "b.safetensors", dict(reversed(wanted.items())))
    for name in "ab":
        path = tmp_path / f"{name}.safetensors"
        for found in (read_tensors(path), read_mapped(path, sha256_of(path)), load_file(path)):
            assert found.keys() == wanted.keys() and all(torch.equal(found[key], value) for key, value in wanted.items())
        assert tensor_shapes(path) == {key: (tuple(value.shape), value.dtype) for key, value in wanted.items()}
        assert read_tensors(path, ["b"]).keys() == {"b"}
        with pytest.raises(StoreCorrupt, match="it has no tensor 'x'"):
            read_tensors(path, ["x"])
        for read in (lambda path=path: read_tensors(path, sha256="0" * 64), lambda path=path: read_mapped(path, "0" * 64)):
            with pytest.raises(StoreCorrupt, match="its checksum is another"):
                read()


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}},
        {"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        },
        {"a": {"dtype": "O", "shape": [2], "data_offsets": [0, 8]}},
        {"a": [1]},
        [],
    ],
)
def test_headers_that_lie(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    for read in (read_tensors, tensor_shapes, lambda path: read_mapped(path, sha256_of(path))):
        with pytest.raises(StoreCorrupt, match="header|overlap"):
            read(tmp_path / "a.safetensors")


def test_a_fit_outlives_its_file(tmp_path):
    """What is mapped is a copy that nobody can cut: reading on is no SIGBUS."""
    wanted = {"a": torch.randn(300, 5000)}
    sha256 = write_tensors(tmp_path / "a.safetensors", wanted)
    found = read_mapped(tmp_path / "a.safetensors", sha256)
    os.truncate(tmp_path / "a.safetensors", 4096)
    assert torch.equal(found["a"], wanted["a"]) and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_run_that_is_cut_while_it_is_read_is_refused(tmp_path):
    recorded(tmp_path)
    run = whence.runs.open_run(tmp_path / "run")
    path = tmp_path / "run" / run.record["checkpoints"][-1]["file"]
    held = run.tensors(10)
    os.truncate(path, 5000)
    assert all(bool(value.isfinite().all()) for value in held.values())
    with pytest.raises(StoreCorrupt, match="its checksum is another.*do this: restore the folder from a copy, or record again"):
        run.tensors(10)


def test_a_changed_letter_in_a_record_is_noticed(tmp_path):
    from whence.recording.record import _Log

    write_record(tmp_path / "a.json", {"start": 0, "stop": 5, "file": "a", "sha256": "b"})
    assert read_record(_Log, tmp_path / "a.json") == _Log(0, 5, "a", "b")
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"stop": 5', '"stop": 6'))
    with pytest.raises(StoreCorrupt, match="it is not what was written"):
        read_record(_Log, tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"start": 0, "stop": 6, "file": "a", "sha256": "b"}')  # by another program
    assert read_record(_Log, tmp_path / "a.json").stop == 6
    (tmp_path / "a.json").write_text('{"start": 0, "stop": true, "file": "a", "sha256": "b"}')
    with pytest.raises(StoreCorrupt, match="stop is True, not a whole number"):
        read_record(_Log, tmp_path / "a.json")


def test_lines_are_read_one_by_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n')
    assert list(read_lines(tmp_path / "a.jsonl")) == [{"a": 1}, [2]]
    (tmp_path / "a.jsonl").write_text('{"a": 1, "a": 2}\n')
    with pytest.raises(ValueError, match="twice"):
        list(read_lines(tmp_path / "a.jsonl"))


def test_rows_wait_in_a_file_that_is_never_mapped(tmp_path):
    rows = RowFile(tmp_path / "rows", 6, torch.zeros(1, 2, 3))
    wanted = torch.randn(2, 2, 3)
    rows.write([4, 1], wanted)
    again = RowFile(tmp_path / "rows", 6, torch.zeros(1, 2, 3))  # of the next process
    assert torch.equal(again.read([4, 1]), wanted) and not again.read([0, 5]).any() and again.read([]).shape == (0, 2, 3)
    os.truncate(tmp_path / "rows", 30)
    with pytest.raises(StoreCorrupt, match="it ends too early"):
        again.read([4])
    with pytest.raises(StoreCorrupt, match="it has 30 bytes, not those of 6 rows"):
        RowFile(tmp_path / "rows", 6, torch.zeros(1, 2, 3))
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    with pytest.raises(BadInput, match="cannot be written"):
        RowFile(tmp_path / "link", 6, torch.zeros(1, 2, 3))


def test_images_that_are_none(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (3, 2)).save(tmp_path / "small.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "small.png")
    assert open_image(tmp_path / "link.png").size == (3, 2)
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a file"):
            open_image(name)
    image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="pixels"):
        open_image(tmp_path / "bomb.png")
    task = whence.Classification(torch.nn.Linear(3, 2), preprocess=np.asarray)
    with pytest.raises(BadInput, match=r"pipe\.png, which cannot be read \(it is a pipe, not a file\)"):
        task.prepare([{"image": str(tmp_path / "pipe.png"), "label": 0}])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_data_that_is_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"data{suffix}")
    with pytest.raises(BadInput, match="which is a pipe or a device"):
        list(load_records(str(tmp_path / f"data{suffix}")))


@pytest.mark.parametrize(
    "name",
    [
        "AutoPipelineForText2Image",
        "DiffusionPipeline",
        "utils",
        "UNet2DModel.from_pretrained",
        "__class__",
        "logging",
        "DDPMScheduler",
    ],
)
def test_only_networks_and_schedulers_of_diffusers_are_loaded(tmp_path, name):
    pytest.importorskip("diffusers")
    (tmp_path / "model_index.json").write_text(
        json.dumps({"unet": ["evil", name], "scheduler": ["diffusers", "DDPMScheduler"]})
    )
    with pytest.raises(BadInput, match="needed a ModelMixin that diffusers has"):
        whence.tasks.load_diffusion(tmp_path)


def test_a_share_report_opens_nothing_elsewhere(tmp_path):
    from tests.test_shares import SOURCES, drawn, table
    from whence.evaluate import save_table

    save_table(table(drawn()), tmp_path / "far" / "table")
    (tmp_path / "near").mkdir()
    found = whence.shares.shares(tmp_path / "far" / "table", SOURCES, config=whence.settings.SharesConfig(draws=20))
    whence.shares.write_shares(found, tmp_path / "near" / "report")
    place = tmp_path / "far" / "table"
    (place / "more").write_text("changed")
    (note,) = (note for note in whence.shares.verify_shares(tmp_path / "near" / "report").notes if "was not opened" in note)
    assert str(place) in note
    role = note.partition("input ")[2].partition(" lies")[0]
    assert whence.shares.verify_shares(tmp_path / "near" / "report", inputs={role: place}).faults == (
        f"{place}: the input {role} is no longer what it was",
    )


def test_an_object_store_is_not_believed(tmp_path):
    pytest.importorskip("upath")
    from whence.store import located

    store = whence.build(
        make_task(),
        make_records(6),
        f"memory://{tmp_path.name}",
        config=whence.BuildConfig(method="logra", rank=4),
        runtime=QUIET,
    )
    path = located(f"memory://{tmp_path.name}") / "shards" / "00000.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].replace(b'"shape":[', b'"shape":[9', 1)
    path.write_bytes((len(text)).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(StoreCorrupt, match="header"):
        read_tensors(path)
    assert len(store) == 6

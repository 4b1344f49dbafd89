"""The store: what is written is read, to the bit; what is not whole or belongs to something else is refused."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import whence
from tests.reference.quantize import decoded
from tests.settings import QUIET
from whence.capture import plan_units
from whence.compress import RowCodec
from whence.data import Dataset, Example, batches
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.load import load_records, load_task
from whence.pipeline.stored.encoders import stored_encoder
from whence.progress import Meter
from whence.score import Batching, gradient_rows
from whence.store import Blueprint, StoredUnit, open_store, verify_store, write_store, write_tensors
from whence.store.cache import note_path
from whence.store.files import locked, write_json

# Beginnings of SHA-256.
GOLDEN = {
    "blueprint.json": "a9c8d178fc868ee0",
    "documents-6ba3a319f70d3eb1.json": "7ec5d92c385736c6",
    "manifest.json": "a5331cc98aebb131",
    "shards/00000.json": "e02557089379d538",
    "shards/00000.jsonl": "4cf5249d077a1900",
    "shards/00000.safetensors": "54eea869a7ad3f65",
    "shards/00001.json": "a6007980c90e20dd",
    "shards/00001.jsonl": "b448a17beaeb9db3",
    "shards/00001.safetensors": "fc6b4e6b389539d3",
}
SMALL = {"rank": 4, "rows_per_shard": 4}


def make_task(seed=0):
    torch.manual_seed(seed)
    return whence.Classification(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double())


def make_records(count=10, first=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 6, dtype=torch.float64, generator=generator)
    return [
        {"id": f"r{number}", "inputs": inputs[number], "label": number % 3, "source": "dïce", "text": f"throw {number} \u2028"}
        for number in range(first, first + count)
    ]


@pytest.fixture
def built(tmp_path):
    """A finished store of three shards: 4, 4 and 2 rows."""
    return whence.build(
        make_task(),
        make_records(),
        tmp_path / "store",
        config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
        runtime=QUIET,
    )


def contents(folder):
    """Bytes of every file that belongs to the store."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    mark = path.stat().st_mtime_ns + 10**9  # a clock of coarse ticks could show the same time
    os.utime(path, ns=(mark, mark))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reseal(folder, number, change):
    """Alter a shard and give it correct checksums, as a faulty build would have."""
    stem = folder / f"shards/{number:05d}"
    tensors, lines = load_file(stem.with_suffix(".safetensors")), stem.with_suffix(".jsonl").read_bytes()
    tensors, lines = change(tensors, lines)
    seal = json.loads(stem.with_suffix(".json").read_text())
    seal["tensors_sha256"] = write_tensors(stem.with_suffix(".safetensors"), tensors)
    stem.with_suffix(".jsonl").write_bytes(lines)
    seal["examples_sha256"] = hashlib.sha256(lines).hexdigest()
    seal |= {
        f"{part}_bytes": stem.with_suffix(end).stat().st_size
        for part, end in (("tensors", ".safetensors"), ("examples", ".jsonl"))
    }
    write_json(stem.with_suffix(".json"), seal)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][number] = seal
    write_json(folder / "manifest.json", manifest)


# What is written is read


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", ["lorif", "logra", "logra-pca", "grad-cos", "factgrass"])
def test_rows_are_those_the_codec_gives(tmp_path, method, dtype):
    task, options = make_task(), {"factor_rank": 1} if method == "lorif" else {}
    dataset = task.prepare(make_records())
    store = whence.build(
        task, dataset, tmp_path / "s", config=whence.BuildConfig(method=method, dtype=dtype, **options, **SMALL), runtime=QUIET
    )
    plan = plan_units(task)
    kronecker, positions = stored_encoder(store, plan, task), store.blueprint.batch_positions
    assert [seal.rows for seal in store.seals] == [4, 4, 2] and store.starts == [0, 4, 8]
    for seal, (start, tensors) in zip(store.seals, store.shards(), strict=True):
        examples = dataset.examples[start : start + seal.rows]
        rows = gradient_rows(
            task, plan, kronecker, examples, batching=Batching(positions), progress=Meter("", 0, None, spoken=float("inf"))
        )
        wanted = store.codec.encode(rows.units)
        assert tensors.keys() == {*wanted, "norms"} and list(wanted) == list(store.codec.layout())
        for name, tensor in wanted.items():
            assert tensors[name].dtype == getattr(torch, dtype)
            assert torch.equal(tensors[name], tensor), name
        assert torch.equal(tensors["norms"], rows.norms().to(tensors["norms"].dtype))
        assert tensors["norms"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert {"left.0", "slab.0"} <= set(store.codec.layout()) if method == "lorif" else "left.0" not in store.codec.layout()
    assert store.codec.row_bytes() * 10 == sum(
        tensor.numel() * tensor.element_size()
        for _, shard in store.shards()
        for name, tensor in shard.items()
        if name != "norms"
    )


def test_examples_are_those_that_went_in(built):
    wanted = [
        {"id": r["id"], "length": 1, "source": r["source"], "text": r["text"], "label": str(r["label"])} for r in make_records()
    ]
    predicted = [example["predicted"] for example in built.examples()]
    assert set(predicted) <= {"0", "1", "2"}
    wanted = [{**example, "predicted": name} for example, name in zip(wanted, predicted, strict=True)]
    assert list(built.examples()) == wanted
    assert [built.example(row) for row in range(len(built))] == wanted
    assert built.ids() == tuple(f"r{number}" for number in range(10))


def test_payload_is_aligned_and_the_safetensors_library_reads_it(built):
    for path in built.folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        assert (8 + header_bytes) % 4096 == 0
        assert path.stat().st_size == 8 + header_bytes + max(entry["data_offsets"][1] for entry in header.values())
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(header) and file.get_tensor(next(iter(header))) is not None


def read_as_documented(folder):
    """Ids and dense rows, by docs/format.md alone: (rows, units) of flat float64 vectors."""
    blueprint, manifest = (json.loads((folder / f"{name}.json").read_text()) for name in ("blueprint", "manifest"))
    ids, rows = [], []
    for seal in manifest["shards"]:
        stem = folder / "shards" / f"{seal['number']:05d}"
        data = stem.with_suffix(".safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        types = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I8": torch.int8, "U8": torch.uint8}
        tensors = {
            name: torch.frombuffer(
                bytearray(data[8 + size :][slice(*entry["data_offsets"])]), dtype=types[entry["dtype"]]
            ).view(entry["shape"])
            for name, entry in json.loads(data[8 : 8 + size]).items()
        }
        offsets, lines = tensors["offsets"].tolist(), stem.with_suffix(".jsonl").read_bytes()
        ids += [json.loads(lines[a:b])["id"] for a, b in zip(offsets, offsets[1:], strict=False)]
        if "scales" in tensors:
            rows.append(codes_as_documented(blueprint, tensors))
            continue
        slabs = [tensors[name] for name in sorted((n for n in tensors if n.startswith("slab.")), key=lambda n: int(n[5:]))]
        long_row, at, units = torch.cat(slabs, 1).double(), 0, []
        for index, unit in enumerate(blueprint["units"]):
            p, r = unit["projected"]
            c = min(blueprint["factor_rank"], p, r)
            if c * (p + r) < p * r:
                pair = tensors[f"left.{index}"].double(), tensors[f"right.{index}"].double()
                units.append(torch.einsum("ncp,ncr->npr", *pair).flatten(1))
            else:
                units.append(long_row[:, at : at + p * r])
                at += p * r
        rows.append(units)
    return ids, [torch.cat([shard[index] for shard in rows]) for index in range(len(blueprint["units"]))]


def codes_as_documented(blueprint, tensors):
    """Units of a shard of whole numbers."""
    bits, at, units = {"int8": 8, "int4": 4, "int2": 2, "int1": 1}[blueprint["dtype"]], 0, []

    def read(name, width):
        nonlocal at
        codes = tensors[name]
        count, vectors = len(codes), codes[0].numel() // codes.shape[-1]
        scales = tensors["scales"][:, at : at + vectors].flatten().tolist()
        at += vectors
        found = decoded(codes.view(-1, codes.shape[-1]).tolist(), scales, width, bits)
        return torch.tensor(found, dtype=torch.float64).view(count, vectors, width)

    for index, unit in enumerate(blueprint["units"]):
        p, r = unit["projected"]
        c = min(blueprint["factor_rank"], p, r)
        if c * (p + r) < p * r:
            pair = read(f"left.{index}", p), read(f"right.{index}", r)
            units.append(torch.einsum("ncp,ncr->npr", *pair).flatten(1))
        else:
            units.append(read(f"dense.{index}", p * r)[:, 0])
    return units


def test_a_reader_written_from_the_documentation(built):
    ids, units = read_as_documented(built.folder)
    assert tuple(ids) == built.ids()
    for index, found in enumerate(units):
        wanted = torch.cat([built.codec.decode(tensors, index) for _, tensors in built.shards()])
        torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-6 * wanted.abs().max().item())


def test_every_field_is_documented(built):
    page = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    for name in ("blueprint.json", "manifest.json", "shards/00000.json"):
        for key in json.loads((built.folder / name).read_text()):
            assert f"`{key}`" in page, key
    for unit in json.loads((built.folder / "blueprint.json").read_text())["units"]:
        assert all(f"`{key}`" in page for key in unit)


def test_golden_bytes(tmp_path):
    """The format itself, with numbers that no arithmetic made. A change here needs a new FORMAT_VERSION."""
    units = (
        StoredUnit("a.weight", ("a.weight", "a.bias"), 9, 17, (4, 4), 2.0),
        StoredUnit("norm.weight", ("norm.weight",), 1, 3, (1, 3), 1.0),
    )
    blueprint = Blueprint(
        method="lorif", method_version=1, projection="rademacher", rank=4, factor_rank=1, curvature_rank=512, seed=7, dtype="bfloat16",
        rows_per_shard=2, batch_positions=64, autocast=None, model="m" * 64, preprocessing="p" * 64, task={"kind": "custom"}, units=units,
        recipe=None, libraries={"torch": "9.9"},
    )  # fmt: skip
    examples = [
        Example("one", {"x": np.arange(3, dtype=np.float32)}, 3, "book", "naïve", (0, 5)),
        Example("two", {"x": np.arange(3, dtype=np.float32)}),
        Example("three", {"x": np.zeros(2, dtype=np.int64)}, 2),
    ]
    layout = blueprint.codec().layout()
    assert layout == {"slab.0": (3,), "left.0": (1, 4), "right.0": (1, 4)}
    with write_store(tmp_path, blueprint, Dataset(examples), append=False) as writer:
        for shard in writer.pending:
            rows = shard.stop - shard.start
            tensors = {
                name: (torch.arange(rows * int(np.prod(shape))).view(rows, *shape) - 2).to(torch.bfloat16) / 8
                for name, shape in layout.items()
            }
            writer.write(shard, {**tensors, "norms": torch.arange(rows, dtype=torch.float32) + 0.5})
        writer.finish({})
    found = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in contents(tmp_path).items()}
    assert found == GOLDEN
    assert verify_store(open_store(tmp_path)) == []


def test_shard_size_is_invisible_in_scores(tmp_path):
    task, records, tables = make_task(), make_records(40), []
    for rows_per_shard in (64, 4):
        options = {"method": "logra", "rank": 4, "dtype": "float64", "rows_per_shard": rows_per_shard}
        store = whence.build(task, records, tmp_path / str(rows_per_shard), config=whence.BuildConfig(**options), runtime=QUIET)
        assert len(store.seals) == -(-40 // rows_per_shard)
        tables.append(whence.score_table(store, task, make_records(3, first=50), runtime=QUIET))
    one, other = tables
    assert one.train_ids == other.train_ids
    # Solving with a damped Fisher multiplies rounding by its condition number, at most trace over damping: here below 1e4.
    atol = 1e4 * 64 * torch.finfo(torch.float64).eps * one.scores.abs().max().item()
    torch.testing.assert_close(other.scores, one.scores, rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["lorif", "logra-pca", "trak", "grass", "grass-selective", "factgrass", "trackstar"])
def test_two_builds_give_the_same_bytes(tmp_path, method):
    for name in ("one", "two"):
        whence.build(
            make_task(), make_records(), tmp_path / name, config=whence.BuildConfig(method=method, **SMALL), runtime=QUIET
        )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "curvature.safetensors" in contents(tmp_path / "one")


def test_building_again_changes_nothing(built, capsys):
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    again = whence.build(
        make_task(),
        make_records(),
        built.folder,
        config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
    )
    assert len(again) == 10 and f"{built.folder} is complete: nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


# Growing a store


@pytest.mark.parametrize("method", ["grad-dot", "logra", "trak", "grass", "factgrass"])
def test_append_equals_the_union(tmp_path, method):
    task, options = make_task(), {"method": method, "dtype": "float64", **SMALL}
    grown = whence.build(task, make_records(6), tmp_path / "grown", config=whence.BuildConfig(**options), runtime=QUIET)
    grown = whence.build(
        task, make_records(5, first=6), grown.folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET
    )
    whole = whence.build(task, make_records(11), tmp_path / "whole", config=whence.BuildConfig(**options), runtime=QUIET)
    assert [seal.rows for seal in grown.seals] == [4, 2, 4, 1] and [seal.rows for seal in whole.seals] == [4, 4, 3]
    assert list(grown.examples()) == list(whole.examples())
    both = [[tensors for _, tensors in store.shards()] for store in (grown, whole)]
    for name in both[0][0]:
        one, other = (torch.cat([shard[name] for shard in shards]) for shards in both)
        # A batch of another size adds the same products in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * other.abs().max().item())
    queries = make_records(3, first=50)
    one, other = (whence.score_table(store, task, queries, runtime=QUIET).scores for store in (grown, whole))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * other.abs().max().item())
    assert verify_store(grown) == []
    again = whence.build(
        task, make_records(5, first=6), grown.folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET
    )
    assert len(again) == 11


def test_append_keeps_learned_axes(tmp_path):
    task, options = make_task(), {"method": "logra-pca", **SMALL}
    store = whence.build(task, make_records(6), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    axes = (store.folder / "axes.safetensors").read_bytes()
    store = whence.build(
        task, make_records(5, first=6), store.folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET
    )
    assert (store.folder / "axes.safetensors").read_bytes() == axes and len(store) == 11
    (store.folder / "axes.safetensors").unlink()
    with pytest.raises(StoreCorrupt, match=r"no axes.safetensors in .*; needed the same axes for the rows to be added"):
        whence.build(
            task, make_records(2, first=11), store.folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET
        )


def test_append_of_known_ids_is_refused(built):
    before = contents(built.folder)
    with pytest.raises(StoreMismatch, match="found the id 'r9' in both the store and the new data"):
        whence.build(
            make_task(),
            make_records(3, first=9),
            built.folder,
            append=True,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )
    assert contents(built.folder) == before


def test_other_data_is_refused_without_append(built):
    before = contents(built.folder)
    with pytest.raises(StoreMismatch, match=r"found a store of other data in .* \(10 rows\).*pass append=True \(--append\)"):
        whence.build(
            make_task(),
            make_records(3, first=20),
            built.folder,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )
    assert contents(built.folder) == before


def test_append_to_an_unfinished_build_is_refused(built):
    for path in built.folder.glob("shards/00002.*"):
        path.unlink()
    with pytest.raises(StoreMismatch, match="found an unfinished build of other data"):
        whence.build(
            make_task(),
            make_records(3, first=20),
            built.folder,
            append=True,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )


# What belongs to something else


def test_other_weights_are_refused(built):
    with pytest.raises(StoreMismatch, match=r"found a store of other weights in .*; needed weights \w{8}, not \w{8}"):
        whence.build(
            make_task(seed=1),
            make_records(),
            built.folder,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )
    with pytest.raises(StoreMismatch, match=r"found a store of weights \w{8} and a task with weights \w{8}.*mix two models"):
        whence.query(built, make_task(seed=1), make_records(1), runtime=QUIET)


def test_another_tokenizer_is_refused(tmp_path, model_folder, other_tokenizer_folder, data_file):
    task, other = (load_task(str(folder))[0] for folder in (model_folder, other_tokenizer_folder))
    options = {"method": "grad-dot", **SMALL}
    store = whence.build(
        task, load_records(str(data_file)), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET
    )
    with pytest.raises(StoreMismatch, match="built with another tokenizer or loss; needed the same preprocessing"):
        whence.build(other, load_records(str(data_file)), store.folder, config=whence.BuildConfig(**options), runtime=QUIET)
    with pytest.raises(StoreMismatch, match=r"a store of tokenizer or loss \w{8} and a task with tokenizer or loss \w{8}"):
        whence.query(store, other, ["a cat"], runtime=QUIET)


def test_other_parameters_are_refused(built):
    task = make_task()
    partial = whence.Classification(task.model, track=["0.*"])
    with pytest.raises(StoreMismatch, match="built with other parameters; needed the same units"):
        whence.build(
            partial,
            make_records(),
            built.folder,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )
    with pytest.raises(StoreMismatch, match="found a store of 3 units and a task with 1; needed the same tracked parameters"):
        whence.query(built, partial, make_records(1), runtime=QUIET)


@pytest.mark.parametrize(
    ("option", "value"),
    [("rank", 3), ("seed", 1), ("dtype", "float32"), ("rows_per_shard", 8), ("batch_positions", 5), ("method", "logra")],
)
def test_other_options_are_refused(built, option, value):
    options = {**SMALL, "method": "lorif", "factor_rank": 1, option: value}
    if option == "method":
        del options["factor_rank"]
    with pytest.raises(StoreMismatch, match=rf"built with {option}=\w+; needed the same {option} \({value} now"):
        whence.build(make_task(), make_records(), built.folder, config=whence.BuildConfig(**options), runtime=QUIET)


@pytest.mark.parametrize(("method", "option"), [("grass", "blow_up"), ("factgrass", "blow_up"), ("logra", "side_divisor")])
def test_widths_of_an_encoder_are_part_of_what_rows_are(tmp_path, method, option):
    """Rows of another factor may have the same sizes: only what is recorded tells them apart."""
    options = {"rows_per_shard": 4, "batch_positions": 40, "method": method, option: 2}
    store = whence.build(make_task(), make_records(), tmp_path, config=whence.BuildConfig(**options), runtime=QUIET)
    assert getattr(open_store(tmp_path).blueprint, option) == 2 and verify_store(open_store(tmp_path)) == []
    table = whence.score_table(store, make_task(), make_records(2), runtime=QUIET)
    assert bool(table.scores.isfinite().all()) and ("sides over 2" in table.method) == (option == "side_divisor")
    for other in (3, 0):
        with pytest.raises(StoreMismatch, match=f"the same {option}"):
            config = whence.BuildConfig(**{**options, option: other})
            whence.build(make_task(), make_records(3, first=30), tmp_path, append=True, config=config, runtime=QUIET)
    refit = whence.pipeline.refit(tmp_path, make_task(), make_records(), quiet=True)
    assert getattr(refit.blueprint, option) == 2


@pytest.mark.parametrize("value", [0, -1, True, 1 << 60, "2"])
def test_impossible_widths_of_an_encoder_are_refused(tmp_path, value):
    whence.build(
        make_task(), make_records(), tmp_path, config=whence.BuildConfig(method="logra", side_divisor=2), runtime=QUIET
    )
    blueprint = json.loads((tmp_path / "blueprint.json").read_text())
    blueprint["task"]["build"]["side_divisor"] = value
    (tmp_path / "blueprint.json").write_text(json.dumps(blueprint))
    with pytest.raises(StoreCorrupt):
        open_store(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "trak", "side_divisor": 2},
        {"method": "logra", "side_divisor": 2, "rank": 4},
        {"method": "logra", "blow_up": 2},
    ],
)
def test_widths_that_a_method_has_no_use_for_are_refused(options):
    with pytest.raises(BadInput):
        whence.BuildConfig(**options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method_version": 0}, r"found rows of lorif version 0 in .*; needed version 1; do this: build the store again"),
        ({"format": 2}, r"found a store of format 2 in .*; needed format 1; do this: build it again with this version"),
    ],
)
def test_other_versions_are_refused(built, change, text):
    edit_json(built.folder / "blueprint.json", **change)
    with pytest.raises(StoreMismatch, match=text):
        whence.build(
            make_task(),
            make_records(),
            built.folder,
            config=whence.BuildConfig(method="lorif", factor_rank=1, **SMALL),
            runtime=QUIET,
        )
    with pytest.raises(StoreMismatch, match=text):
        whence.query(built.folder, make_task(), make_records(1), runtime=QUIET)


def test_an_incomplete_blueprint_is_refused(built):
    path = built.folder / "blueprint.json"
    content = json.loads(path.read_text())
    del content["units"]
    path.write_text(json.dumps(content))
    with pytest.raises(StoreCorrupt, match=r"found an incomplete blueprint.json in .* \('units'\); needed the fields method, "):
        open_store(built.folder)
    path.write_text("{")
    with pytest.raises(StoreCorrupt, match="found blueprint.json missing or unreadable in"):
        open_store(built.folder)


# What is not whole


def test_an_altered_blueprint_or_manifest_is_refused(built):
    edit_json(built.folder / "blueprint.json", seed=3)
    with pytest.raises(
        StoreCorrupt, match=r"blueprint.json \(it is not the one that the manifest was written for\).*restore the folder"
    ):
        open_store(built.folder)
    edit_json(built.folder / "manifest.json", shards=[{}])
    with pytest.raises(
        StoreCorrupt, match=r"manifest.json \(it is incomplete: .*delete it and run the same `whence build` again"
    ):
        open_store(built.folder)


def test_no_store_and_unfinished_store(tmp_path, built):
    with pytest.raises(BadInput, match="found no store at .*nowhere; needed a folder made by `whence build`"):
        open_store(tmp_path / "nowhere")
    (built.folder / "manifest.json").unlink()
    with pytest.raises(
        StoreCorrupt, match=r"found an unfinished store at .* \(3 shards so far\); .*it goes on where it stopped"
    ):
        open_store(built.folder)


def test_altered_shard_of_unchanged_size_is_refused(built):
    task = make_task()
    whence.query(built.folder, task, make_records(1), runtime=QUIET)
    assert note_path(built.folder).exists()
    flip(built.folder / "shards/00001.safetensors")
    for _ in range(2):
        with pytest.raises(
            StoreCorrupt, match=r"00001.safetensors \(its checksum is not the sealed one\).*delete that shard's files"
        ):
            whence.query(built.folder, task, make_records(1), runtime=QUIET)


def test_without_the_notes_of_an_earlier_check_all_is_checked(built):
    note_path(built.folder).unlink()
    data = built.folder / "shards/00000.jsonl"
    mark = data.stat().st_mtime_ns
    flip(data, at=8)
    os.utime(data, ns=(mark, mark))
    with pytest.raises(StoreCorrupt, match=r"00000.jsonl \(its checksum is not the sealed one\)"):
        open_store(built.folder)


def test_a_torn_note_of_an_earlier_check_is_no_harm(built):
    note_path(built.folder).write_text('{"00000.js')
    assert len(open_store(built.folder)) == 10


@pytest.mark.parametrize("name", ["shards/00001.safetensors", "shards/00002.jsonl", "curvature.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_verify_finds_damage(built, name, damage):
    path = built.folder / name
    assert verify_store(open_store(built.folder)) == []
    if damage == "flip":
        flip(path)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.unlink()
    faults = verify_store(open_store(built.folder, check=False))
    wrong = "it is missing" if damage == "delete" else "its checksum is not the sealed one"
    assert faults == [f"{path}: {wrong}"]
    with pytest.raises(StoreCorrupt, match="found a damaged file"):
        open_store(built.folder)


def test_verify_finds_an_edited_example(built):
    path = built.folder / "shards/00000.jsonl"
    path.write_text(path.read_text().replace("throw 1", "throw 9"))
    assert verify_store(open_store(built.folder, check=False)) == [f"{path}: its checksum is not the sealed one"]


def _nan(name):
    def change(tensors, lines):
        tensors[name][1] = torch.nan
        return tensors, lines

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_nan("slab.0"), "row 1 of slab.0 is not finite"),
        (_nan("left.0"), "row 1 of left.0 is not finite"),
        (_nan("norms"), "row 1 of norms is not finite"),
        (lambda tensors, lines: (tensors, lines.replace(b'"r5"', b'"r0"')), "the id 'r0' occurs twice"),
        (lambda tensors, lines: (tensors, lines.replace(b'"r5"', b'"r55"')), "the offsets do not match the examples"),
        (
            lambda tensors, lines: ({**tensors, "slab.0": tensors["slab.0"][:3].contiguous()}, lines),
            "slab.0 has the shape (3, 16), not (4, 16)",
        ),
    ],
)  # fmt: skip
def test_verify_finds_what_was_sealed_wrong(built, change, fault):
    reseal(built.folder, 1, change)
    faults = verify_store(open_store(built.folder))
    assert faults and str(built.folder / "shards/00001") in faults[0] and fault in faults[0]


def test_verify_compares_manifest_and_shards(built):
    manifest = json.loads((built.folder / "manifest.json").read_text())
    write_json(built.folder / "manifest.json", {**manifest, "rows": 8, "shards": manifest["shards"][:2]})
    assert verify_store(open_store(built.folder)) == [
        f"{built.folder / 'manifest.json'}: it does not list the shards that are there"
    ]


def test_two_builders_at_once(tmp_path):
    with locked(tmp_path / "s"), pytest.raises(BadInput, match=r"found another build writing to .*; needed one at a time"):
        whence.build(
            make_task(), make_records(), tmp_path / "s", config=whence.BuildConfig(method="grad-dot", **SMALL), runtime=QUIET
        )
    assert (
        len(
            whence.build(
                make_task(),
                make_records(),
                tmp_path / "s",
                config=whence.BuildConfig(method="grad-dot", **SMALL),
                runtime=QUIET,
            )
        )
        == 10
    )


# Laws


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 4), factor_rank=st.sampled_from([None, 1, 2]), slabs=st.booleans())
def test_codec_keeps_what_it_can_hold(data, count, factor_rank, slabs):
    """Matrices of at most the kept rank come back, and scores are inner products with what is stored."""
    sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    shapes = tuple(data.draw(st.lists(sizes, min_size=1, max_size=4))) + (((70, 61),) if slabs and factor_rank is None else ())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    names = tuple(f"unit{number}" for number in range(len(shapes)))
    codec = RowCodec(names, shapes, factor_rank, torch.float64, seed=0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rank = factor_rank or 3
    rows = [draw(count, p, rank) @ draw(count, rank, r) for p, r in shapes]
    tensors = codec.encode(rows)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {n: (count, *s) for n, s in codec.layout().items()}
    assert sum(tensor.numel() * 8 for tensor in tensors.values()) == count * codec.row_bytes()
    queries = [draw(2, *shape) for shape in shapes]
    wanted = torch.zeros(2, count, dtype=torch.float64)
    for index, row in enumerate(rows):
        read = codec.decode({name: tensors[name] for name in codec.tensors_of(index)}, index)
        wanted += queries[index].flatten(1) @ read.T
        if codec.ranks[index] is None:
            assert torch.equal(read, row.flatten(1))
        else:
            torch.testing.assert_close(read, row.flatten(1), rtol=0, atol=1e-9 * max(1.0, row.abs().sum().item()))
    torch.testing.assert_close(codec.scorer(queries)(tensors), wanted, rtol=0, atol=1e-10 * max(1.0, wanted.abs().sum().item()))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), max_size=60),
    max_positions=st.integers(1, 200),
    max_examples=st.integers(1, 10),
)
def test_batches_hold_every_index_once_within_the_budget(lengths, max_positions, max_examples):
    found = list(batches(lengths, max_positions=max_positions, max_examples=max_examples))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= max_examples
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= max_positions

"""Rows as small integers: codes against a reader of one number at a time, fast products against decoded rows, stores of them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from tests import zoo
from tests.reference.quantize import best_codes, decoded
from tests.settings import QUIET
from tests.test_store import contents, make_records, make_task, read_as_documented
from whence.compress import QuantizedCodec
from whence.compress.integers import IntegerScorer
from whence.compress.quantize import packed_width, quantize, to_integers
from whence.errors import NonFinite, StoreMismatch, UnknownOption
from whence.store import open_store, verify_store

BITS = {"int8": 8, "int4": 4, "int2": 2, "int1": 1}
SHAPES = ((8, 8), (1, 6), (70, 70), (3, 40), (1, 1))
# Error of a Gaussian number in units of its deviation, with room: half a step of 4 / 127 or 2.5 / 7; sqrt(1 / .8825 - 1) for four levels
# (Max 1960) and sqrt(pi / 2 - 1) for signs, of unshortened codes.
ERRORS = {8: 0.012, 4: 0.16, 2: 0.42, 1: 0.79}


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_codes_are_the_nearest_and_lie_as_documented(bits, width):
    torch.manual_seed(0)
    rows = torch.randn(5, width).double() * torch.tensor([1e-20, 1e-3, 1.0, 50.0, 0.0])[:, None]
    codes, scales = quantize(rows, bits)
    assert codes.shape == (5, packed_width(width, bits)) and scales.dtype == torch.bfloat16
    wanted = decoded(codes.tolist(), scales.tolist(), width, bits)
    found = to_integers(codes, bits)[:, :width].double() * scales.double()[:, None]
    assert found.tolist() == wanted
    for row, scale, numbers in zip(rows.tolist(), scales.tolist(), wanted, strict=True):
        if bits == 2:  # nearest in one of the steps that are tried, then made longer
            size = (sum(x * x for x in row) / width) ** 0.5
            tried = [best_codes(row, size * step, bits) for step in (0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35)]
            assert not scale or [round(number / scale) for number in numbers] in tried
            continue
        nearest = [code * scale for code in best_codes(row, scale, bits)]
        assert all(abs(a - x) <= abs(b - x) + 1e-12 * abs(x) for x, a, b in zip(row, numbers, nearest, strict=True))


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_no_other_scale_is_much_better(bits):
    torch.manual_seed(0)
    rows = torch.randn(8, 400).double()
    codes, scales = quantize(rows, bits)
    found = to_integers(codes, bits).double() * scales.double()[:, None]
    error = (found - rows).norm(dim=1)
    assert float((error / rows.norm(dim=1)).max()) < ERRORS[bits]
    if bits <= 2:  # these are as long as the row along itself; the least error is that of a shorter code
        torch.testing.assert_close((found * rows).sum(1), rows.square().sum(1), rtol=1e-2, atol=0)
        error = (found * (rows.square().sum(1) / found.square().sum(1))[:, None] - rows).norm(dim=1)
    most = {8: 127, 4: 7, 2: 3, 1: 1}[bits]
    for share in torch.linspace(0.2, 1.1, 46).tolist():
        scale = rows.abs().amax(1, keepdim=True) * share / most
        odd = (rows / scale / 2).floor() * 2 + 1
        whole = odd.clamp(-most, most) if bits <= 2 else (rows / scale).round().clamp(-most, most)
        # 8 bits take the whole range as it is, 4 bits try a few cuts.
        assert (error <= (whole * scale - rows).norm(dim=1) * {8: 1.1, 4: 1.03, 2: 1.01, 1: 1.01}[bits]).all()


def scored(query, codes, bits):
    """Of one unit whose scales are all 1."""
    return IntegerScorer([query], bits)([codes], torch.ones(1, len(codes), dtype=query.dtype))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([8, 4, 2, 1]), rows=st.integers(1, 70), width=st.integers(1, 90), queries=st.integers(1, 9),
    seed=st.integers(0, 99), wide=st.booleans(),
)  # fmt: skip
def test_integer_products_are_inner_products(bits, rows, width, queries, seed, wide):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, width, generator=generator)
    query = torch.randn(queries, width, generator=generator, dtype=torch.float64).to(torch.float64 if wide else torch.float32)
    query[0] = 0
    codes, _ = quantize(numbers, bits)
    values = to_integers(codes, bits)[:, :width].double()
    found = scored(query, codes, bits)
    assert found.dtype == query.dtype
    eps = torch.finfo(query.dtype).eps
    size = values.abs() @ query.double().abs().amax(1, keepdim=True).expand(-1, width).T
    assert ((found.double() - values @ query.double().T).abs() <= 4 * eps * size).all()


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_processors_without_the_integer_kernels_give_the_same_numbers(bits, monkeypatch):
    torch.manual_seed(0)
    codes, _ = quantize(torch.randn(30, 2050), bits)
    query = torch.randn(3, 2050)
    wanted = scored(query, codes, bits)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch, "_int_mm")
    assert torch.equal(scored(query, codes, bits), wanted)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_integer_products_of_long_rows(bits, monkeypatch):
    """Longer than what is multiplied, and than what is unpacked, at once; so long that an int32 could not hold the sum."""
    monkeypatch.setattr("whence.compress.integers._FEWEST_ROWS", 2)
    monkeypatch.setattr("whence.compress.integers._PRODUCTS", 64)
    rows = torch.full((3, 150_001), 3.0)
    rows[:, ::70] = -2.0
    codes, _ = quantize(rows, bits)
    values = to_integers(codes, bits)[:, :150_001].double()
    query = torch.linspace(0.95, 1, 150_001).double()[None]
    torch.testing.assert_close(scored(query, codes, bits), values @ query.T, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bits", [(8,) * 5, (4,) * 5, (2,) * 5, (1,) * 5, (4, 1, 8, 1, 2)])
@pytest.mark.parametrize("num_queries", [1, 3, 9])
@pytest.mark.parametrize("factor_rank", [None, 1, 2])
def test_scores_are_inner_products_of_decoded_rows(monkeypatch, bits, factor_rank, num_queries):
    monkeypatch.setattr("whence.compress.factors._CACHE_NUMBERS", 1 << 12)
    torch.manual_seed(0)
    codec = QuantizedCodec(tuple("abcde"), SHAPES, factor_rank, bits, seed=0)
    rows = [torch.randn(21, *shape).double() for shape in SHAPES]
    queries = [torch.randn(num_queries, *shape).double() for shape in SHAPES]
    tensors = codec.encode(rows)
    assert {name: tuple(t.shape[1:]) for name, t in tensors.items()} == codec.layout() and list(tensors) == list(codec.layout())
    assert sum(t[0].numel() * t.element_size() for t in tensors.values()) == codec.row_bytes()
    held = [codec.decode({name: tensors[name] for name in codec.tensors_of(index)}, index) for index in range(len(SHAPES))]
    wanted = sum(q.flatten(1) @ d.double().T for q, d in zip(queries, held, strict=True))
    # Factors are decoded, and multiplied out, in float32.
    torch.testing.assert_close(codec.scorer(queries)(tensors), wanted, rtol=1e-9 if factor_rank is None else 1e-5, atol=1e-4)
    alone = codec.encode([row[3:5] for row in rows])
    assert all(torch.equal(tensor, tensors[name][3:5]) for name, tensor in alone.items()), "a row depends on itself only"


def build(folder, dtype, method="logra", **options):
    defaults = {"rank": 4, "rows_per_shard": 4} | ({"factor_rank": 1} if method == "lorif" else {})
    return whence.build(
        make_task(),
        make_records(),
        folder,
        config=whence.BuildConfig(method=method, dtype=dtype, **{**defaults, **options}),
        runtime=QUIET,
    )


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("method", ["lorif", "logra", "logra-pca", "grad-cos"])
def test_a_store_of_codes(tmp_path, method, dtype):
    store = build(tmp_path / "s", dtype, method)
    assert verify_store(store) == [] and store.blueprint.to_json()["format"] == 2
    assert store.codec.row_bytes() * 10 == sum(
        t.numel() * t.element_size() for _, shard in store.shards() for name, t in shard.items() if name != "norms"
    )
    exact = build(tmp_path / "exact", "float64", method)
    for index in range(len(store.blueprint.units)):
        rows, wanted = (torch.cat([s.codec.decode(shard, index) for _, shard in s.shards()]).double() for s in (store, exact))
        size = wanted.norm(dim=1)
        error = (rows - wanted).norm(dim=1)
        # Of factors both sides are rounded. A row of zeros stays one.
        assert (error <= 3 * ERRORS[BITS[dtype]] * size + 1e-30).all() and ((size > 1e-12) | (rows.norm(dim=1) <= 1e-12)).all()
    norms = [torch.cat([shard["norms"] for _, shard in s.shards(["norms"])]) for s in (store, exact)]
    assert norms[0].dtype == torch.float32
    torch.testing.assert_close(norms[0].double(), norms[1])


@pytest.mark.parametrize("dtype", BITS)
def test_the_curvature_is_that_of_the_rows_as_stored(tmp_path, dtype):
    store = build(tmp_path / "s", dtype)
    table = whence.score_table(
        store, make_task(), make_records(3, first=50), damping=whence.Damping(relative=0.1), runtime=QUIET
    )
    fisher = store.file("curvature.safetensors")
    for index in range(len(store.blueprint.units)):
        rows = torch.cat([store.codec.decode(shard, index) for _, shard in store.shards()]).double()
        vectors, values = fisher[f"vectors.{index}"].double(), fisher[f"values.{index}"].double()
        torch.testing.assert_close(vectors * values @ vectors.T, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    assert table.bytes_per_example == store.codec.row_bytes()


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups"])
@pytest.mark.parametrize("method", ["lorif", "logra", "grad-dot", "grad-cos"])
def test_eight_bits_rank_as_full_precision_does(tmp_path, name, method):
    task, dataset = zoo.make(name, count=20)
    options = {"rank": 6, "rows_per_shard": 8, "method": method}
    damping = whence.Damping(relative=None if method.startswith("grad") else 0.3)
    tables = [
        whence.score_table(
            whence.build(task, dataset, tmp_path / dtype, config=whence.BuildConfig(dtype=dtype, **options), runtime=QUIET),
            task,
            dataset,
            damping=damping,
            runtime=QUIET,
        )
        for dtype in ("float32", "int8")
    ]
    exact, found = (table.scores.double() for table in tables)
    assert float((found - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("method", ["lorif", "logra"])
def test_resumed_and_appended_builds_of_codes(tmp_path, method, dtype):
    whole = build(tmp_path / "whole", dtype, method)
    cut = build(tmp_path / "cut", dtype, method)
    for path in cut.folder.glob("shards/00001.*"):
        path.unlink()
    (cut.folder / "manifest.json").unlink()
    build(tmp_path / "cut", dtype, method)
    assert contents(cut.folder) == contents(whole.folder)
    config = whence.BuildConfig(method=method, dtype=dtype, rank=4, factor_rank=1 if method == "lorif" else 0)
    grown = whence.build(make_task(), make_records(5, first=20), whole.folder, append=True, config=config, runtime=QUIET)
    assert len(grown) == 15 and verify_store(grown) == []
    first = [(shard, other) for (_, shard), (_, other) in zip(cut.shards(), grown.shards(), strict=False)]
    assert all(torch.equal(shard[name], other[name]) for shard, other in first for name in shard)


@pytest.mark.parametrize("dtype", BITS)
def test_a_reader_of_codes_written_from_the_documentation(tmp_path, dtype):
    store = build(tmp_path / "s", dtype, "lorif")
    ids, units = read_as_documented(store.folder)
    assert tuple(ids) == store.ids()
    for index, found in enumerate(units):
        wanted = torch.cat([store.codec.decode(shard, index) for _, shard in store.shards()]).double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * max(1e-30, wanted.abs().max().item()))


@pytest.mark.parametrize("method", ["lorif", "logra", "grad-cos"])
@pytest.mark.parametrize("dtype", BITS)
def test_token_scores_of_codes_add_up_to_the_hit_or_are_withheld(tmp_path, model_folder, method, dtype):
    """They come from running the model again: where the row has little to do with that gradient they would explain something else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder).double()
    task = whence.CausalLM(model, AutoTokenizer.from_pretrained(model_folder))
    records = [f"{letter} text of {letter}" for letter in "abcdefgh"]
    options = {"factor_rank": 4} if method == "lorif" else {}
    store = whence.build(
        task, records, tmp_path / "s", config=whence.BuildConfig(method=method, rank=16, dtype=dtype, **options), runtime=QUIET
    )
    found = whence.query(store, task, records[:2], k=8, tokens=True, runtime=QUIET)
    hits = [hit for side in found.proponents + found.opponents for hit in side]
    without = sum(not hit.token_scores for hit in hits)
    assert all(sum(hit.token_scores) == pytest.approx(hit.score, rel=1e-5) for hit in hits if hit.token_scores)
    notes = [note for note in found.notes if "no token scores" in note]
    assert [note.startswith(f"{without} hits have no token scores: rows of so few bits") for note in notes] == [True] * bool(
        without
    )
    assert all(
        "do this: build with a larger rank or dtype, or method aligned; or ask a store of aligned in two" in note
        for note in notes
    )
    if dtype == "int8":
        assert without == 0
    if (method, dtype) == ("lorif", "int1"):
        assert without


def test_plain_stores_keep_their_format_and_unknown_ones_are_refused(tmp_path):
    assert json.loads((build(tmp_path / "plain", "bfloat16").folder / "blueprint.json").read_text())["format"] == 1
    folder = build(tmp_path / "s", "int4").folder
    content = json.loads((folder / "blueprint.json").read_text())
    (folder / "blueprint.json").write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(StoreMismatch, match="a store of format 9 in .*; needed format 2; do this: build it again"):
        open_store(folder)
    (folder / "blueprint.json").write_text(json.dumps({**content, "dtype": "int3", "format": 1}))
    with pytest.raises(
        UnknownOption, match="dtype 'int3'; needed one of: float32, .*, int8, int4, int2, int1; do this: pick one"
    ):
        whence.store.Blueprint.read(folder).codec()
    with pytest.raises(UnknownOption, match="found dtype='int3'; needed one of: method, bfloat16, .*, int8, int4, int2, int1"):
        build(tmp_path / "never", "int3")


def test_another_dtype_is_refused(tmp_path):
    folder = build(tmp_path / "s", "int8").folder
    with pytest.raises(StoreMismatch, match="built with dtype=int8; needed the same dtype .int4 now, int8 there"):
        build(folder, "int4")


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_rows_that_are_not_finite_are_refused(tmp_path, monkeypatch, dtype, value):
    def spoilt(self, rows, encode=QuantizedCodec.encode):
        rows[0][1, 0, 0] = value
        return encode(self, rows)

    monkeypatch.setattr(QuantizedCodec, "encode", spoilt)
    with pytest.raises(NonFinite, match=f"a gradient of the example 'r1' that {dtype} cannot hold"):
        build(tmp_path / "s", dtype)


def test_a_query_that_is_not_finite_gives_no_score():
    codes, _ = quantize(torch.randn(3, 20, generator=torch.Generator().manual_seed(0)), 8)
    for value in (torch.inf, torch.nan):
        query = torch.ones(2, 20)
        query[1, 4] = value
        found = scored(query, codes, 8)
        assert torch.isfinite(found[:, 0]).all() and not torch.isfinite(found[:, 1]).any()

"""Codes of half-whitened gradients: without loss they are EK-FAC, with loss they are the formulas; what is chosen, kept and refused."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference.aligned import best_coordinates, low_rank_scores, whitened_rows
from tests.settings import QUIET
from tests.test_store import contents, make_records, make_task
from whence.capture import plan_units
from whence.compress import TURNED, Aligned, Axes, Kronecker, Whitened, quantize, to_integers, turn, turn_back
from whence.curvature import Choosing, Code, code_axes, fit_ekfac, most_bits
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch, UnknownOption
from whence.pipeline.stored import code_size as sizes
from whence.pipeline.stored import learn_code as codes_module
from whence.records import Dense, OneHot, Pair, Unit
from whence.reflections import Blocked, Reflected
from whence.score import token_scores
from whence.settings import FitConfig
from whence.store import open_store, verify_store

MODELS = ["linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "lone_parameter", "applied_twice", "regression"]
PLAIN = {"method": "aligned", "batch_positions": 40, "rows_per_shard": 4}


def split(name, count=14, queries=3):
    task, dataset = zoo.make(name, count=count)
    return task, Dataset(dataset.examples[queries:]), Dataset(dataset.examples[:queries])


def fitted(task, train):
    """The curvature that a build fits."""
    return fit_ekfac(task, plan_units(task), train, FitConfig(), max_positions=40, quiet=True)


def rows_of(task, curvature, examples, objective="loss", relative=0.1):
    return torch.cat(whitened_rows(task, plan_units(task), curvature, relative, examples, objective), 1)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_numbers_as_examples_are_ekfac_itself(tmp_path, name):
    task, train, queries = split(name)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET)
    table = whence.score_table(store, task, queries, runtime=QUIET)
    wanted = whence.attribute(
        task,
        train,
        queries,
        method=whence.EKFAC(damping=whence.Damping(relative=0.1)),
        runtime=whence.Runtime(batch_positions=40, quiet=True),
    )
    torch.testing.assert_close(table.scores, wanted.scores, rtol=1e-6, atol=1e-9 * float(wanted.scores.abs().max()))
    assert table.unit == wanted.unit and table.bytes_per_example == 8 * store.blueprint.rank <= 8 * len(train)


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups"])
@pytest.mark.parametrize(("width", "sample"), [(3, 11), (4, 6)])
def test_fewer_numbers_are_the_leading_directions(tmp_path, name, width, sample):
    task, train, queries = split(name)
    store = whence.build(
        task,
        train,
        tmp_path / "s",
        config=whence.BuildConfig(dtype="float64", rank=width, axes_examples=sample, relative_damping=0.3, **PLAIN),
        runtime=QUIET,
    )
    table = whence.score_table(store, task, queries, runtime=QUIET)
    curvature = fitted(task, train)
    rows = rows_of(task, curvature, train.examples, relative=0.3)
    asked = rows_of(task, curvature, queries.examples, "measurement", relative=0.3)
    chosen = rows[[place * len(train) // sample for place in range(sample)]]
    wanted = low_rank_scores(chosen, rows, asked, width)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["linear", "gpt2"])
def test_too_many_parameters_leave_the_best_coordinates(tmp_path, monkeypatch, name):
    """Axes that have room for half of the parameters, at 1 bit: the others are left out, and a score keeps its size."""
    task, train, queries = split(name)
    size = sum(unit.outputs * unit.inputs for unit in plan_units(task).units)
    monkeypatch.setattr(sizes, "AXES_BYTES", size // 2 * len(train) // 8)
    kept = 8 * sizes.AXES_BYTES // len(train)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET)
    curvature = fitted(task, train)
    masks = best_coordinates(curvature, 0.1, kept)
    tensors = store.file("codes.safetensors")
    assert [tensors[f"kept.{index}"].tolist() for index in range(len(masks))] == [m.nonzero()[:, 0].tolist() for m in masks]
    assert sum(int(mask.sum()) for mask in masks) == kept
    table = whence.score_table(store, task, queries, runtime=QUIET)
    mask = torch.cat(masks)
    rows, asked = rows_of(task, curvature, train.examples), rows_of(task, curvature, queries.examples, "measurement")
    exact = -asked[:, mask] @ rows[:, mask].T / len(train)
    slope = float((table.scores * exact).sum() / exact.square().sum())
    assert torch.corrcoef(torch.stack([table.scores.flatten(), exact.flatten()]))[0, 1] > 0.8 and 0.6 < slope < 1.6


@pytest.mark.parametrize("bits", [32, 8, 4, 1])
def test_rounded_axes_multiply_as_their_numbers(bits, monkeypatch):
    monkeypatch.setattr("whence.compress.aligned._BLOCK_NUMBERS", TURNED)
    torch.manual_seed(0)
    axes = torch.randn(TURNED + 23, 3) * torch.rand(TURNED + 23, 1)
    made = Axes.of(axes, bits, 0, seed=5)
    found = torch.cat([block.clone() for _, block in made.blocks()])
    if bits == 32:
        assert torch.equal(found, axes)
        return
    assert len(found) == 2 * TURNED
    codes, scales = quantize(turn(axes.T, 0, seed=5).T.contiguous(), bits)
    assert torch.equal(found, to_integers(codes, bits)[:, :3] * scales.float()[:, None])
    back = turn_back(found.T.contiguous(), 0, seed=5).T[: len(axes)]
    assert float((back - axes).norm() / axes.norm()) < {8: 0.01, 4: 0.2, 1: 0.8}[bits]


def test_turning_keeps_inner_products_and_has_an_inverse():
    torch.manual_seed(0)
    rows = torch.randn(4, TURNED + 100).double()
    whole = turn(rows, 0, seed=1)
    torch.testing.assert_close(whole @ whole.T, rows @ rows.T)
    torch.testing.assert_close(turn_back(whole, 0, seed=1)[:, : rows.shape[1]], rows)
    parts = torch.cat([turn(rows[:, :TURNED], 0, seed=1), turn(rows[:, TURNED:], TURNED, seed=1)], 1)
    torch.testing.assert_close(whole, parts)
    spike = torch.zeros(1, TURNED).double()
    spike[0, 7] = 1.0
    torch.testing.assert_close(turn(spike, 0, seed=1).abs(), torch.full((1, TURNED), 1 / 128).double())


@pytest.mark.parametrize("most_bytes", [1 << 23, 2_000_000, 1_100_000, 200_000])
def test_rounding_of_the_axes_keeps_the_size_of_codes(most_bytes):
    torch.manual_seed(0)
    size = (TURNED + 400, 900)
    rows = [torch.randn(40, size[0]).double() * torch.linspace(2, 0.1, size[0]).double(), torch.randn(40, size[1]).double()]
    learned = code_axes(rows, [row[:0] for row in rows], Choosing([Code(40, "float64", 64)], most_bytes, 0))
    axes, code = learned.axes, learned.code
    assert axes.bits == most_bits(sum(size), 40, most_bytes) and code == Code(40, "float64", 64)
    whole = torch.cat(rows, 1)
    turned = whole if axes.bits == 32 else turn(whole, 0, seed=0)
    found = sum(turned[:, chosen] @ block.double() for chosen, block in axes.blocks())
    gram, exact = found @ found.T, whole @ whole.T
    assert float((gram - exact).norm() / exact.norm()) < {32: 1e-6, 8: 0.02, 4: 0.1, 1: 0.1}[axes.bits]


def test_the_code_is_chosen_by_what_the_sample_loses():
    """At equal bytes: a steep spectrum wants few numbers of many bits, a flat one many of few."""
    torch.manual_seed(0)
    choices = [Code(64, "int4", 4), Code(32, "int8", 8)]
    steep = torch.randn(64, 400).double() * torch.logspace(0, -12, 400).double()
    flat = torch.randn(64, 400).double()
    asked = range(0, 64, 8)
    chosen = [code_axes([rows], [rows[:0]], Choosing(choices, 1 << 20, 0), asked).code.dtype for rows in (steep, flat)]
    assert chosen == ["int8", "int4"]


@pytest.mark.parametrize(("size", "most"), [(16, 11), (20, 11), (64, 11)])
def test_bytes_per_example_are_kept(tmp_path, size, most):
    store = whence.build(
        make_task(),
        make_records(most),
        tmp_path / "s",
        config=whence.BuildConfig(bytes_per_example=size, **PLAIN),
        runtime=QUIET,
    )
    assert store.codec.row_bytes() <= size and store.blueprint.dtype in ("int1", "int2", "int4", "int8", "bfloat16")
    assert verify_store(store) == []
    again = whence.build(
        make_task(),
        make_records(most),
        tmp_path / "s",
        config=whence.BuildConfig(bytes_per_example=size, **PLAIN),
        runtime=QUIET,
    )
    assert again.blueprint == store.blueprint
    with pytest.raises(StoreMismatch, match="found a code of .* numbers of .* with damping 0.1 x mean"):
        whence.build(
            make_task(),
            make_records(most),
            tmp_path / "s",
            config=whence.BuildConfig(bytes_per_example=size, relative_damping=0.2, **PLAIN),
            runtime=QUIET,
        )


@pytest.mark.parametrize("name", ["gpt2", "linear", "layer_norm"])
def test_token_scores_add_up(tmp_path, name):
    from whence.pipeline.stored.prepared import PreparedQuery

    task, dataset = zoo.make(name, count=8)
    store = whence.build(
        task, dataset, tmp_path / "s", config=whence.BuildConfig(dtype="float64", rank=5, **PLAIN), runtime=QUIET
    )
    asked = PreparedQuery.prepare(store, task, Dataset(dataset.examples[:2]), whence.Damping(), True)
    table = whence.score_table(store, task, Dataset(dataset.examples[:2]), runtime=QUIET)
    for place in (1, 0):  # one query after the other: what is kept of the last one is not used for the next
        for row, example in enumerate(dataset.examples):
            parts = token_scores(task, asked.plan, asked.encoder, example, [unit[place] for unit in asked.preconditioned])
            assert float(parts.sum()) == pytest.approx(float(table.scores[place, row]), rel=1e-6, abs=1e-10)


def test_appended_rows_have_the_first_code(tmp_path):
    first = whence.build(
        make_task(), make_records(8), tmp_path / "s", config=whence.BuildConfig(rank=6, **PLAIN), runtime=QUIET
    )
    code = (first.folder / "codes.safetensors").read_bytes()
    grown = whence.build(
        make_task(),
        make_records(5, first=20),
        tmp_path / "s",
        append=True,
        config=whence.BuildConfig(rank=6, **PLAIN),
        runtime=QUIET,
    )
    assert len(grown) == 13 and (grown.folder / "codes.safetensors").read_bytes() == code and verify_store(grown) == []


def test_a_stopped_fit_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whence.build(make_task(), make_records(), tmp_path / "whole", config=whence.BuildConfig(rank=6, **PLAIN), runtime=QUIET)
    monkeypatch.setattr(codes_module, "code_axes", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        whence.build(
            make_task(), make_records(), tmp_path / "stopped", config=whence.BuildConfig(rank=6, **PLAIN), runtime=QUIET
        )
    assert (tmp_path / "stopped" / "factors" / "values.safetensors").exists()
    monkeypatch.undo()
    whence.build(make_task(), make_records(), tmp_path / "stopped", config=whence.BuildConfig(rank=6, **PLAIN), runtime=QUIET)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_large_sample_is_held_in_half_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "_WIDE_BYTES", 0)
    task, train, queries = split("gpt2")
    found = whence.score_table(
        whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET),
        task,
        queries,
        runtime=QUIET,
    )
    monkeypatch.undo()
    wanted = whence.score_table(
        whence.build(task, train, tmp_path / "w", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET),
        task,
        queries,
        runtime=QUIET,
    )
    assert torch.corrcoef(torch.stack([found.scores.flatten(), wanted.scores.flatten()]))[0, 1] > 0.999


def test_held_out_examples_of_a_large_sample_are_held_in_half_the_bytes(tmp_path, monkeypatch):
    """They are as many bytes each as the sample's, and are counted among those that learning takes."""
    task, train, queries = split("gpt2", count=47)
    coordinates = sum(unit.outputs * unit.inputs for unit in plan_units(task).units)
    config = whence.BuildConfig(axes_examples=8, bytes_per_example=64, **PLAIN)
    types, together, codes = [], codes_module._together, []

    def counted(chunks, count, is_halved):
        rows = together(chunks, count, is_halved)
        types.append((count, rows[0].dtype))
        return rows

    monkeypatch.setattr(codes_module, "_together", counted)
    monkeypatch.setattr(sizes, "_FEWEST_HELD", 4)
    monkeypatch.setattr(sizes, "_STREAMED", 0)
    sized = []
    for wide in (sizes._WIDE_BYTES, 0):
        monkeypatch.setattr(sizes, "_WIDE_BYTES", wide)
        sized.append(sizes.code_size(plan_units(task).units, len(train), config))
        store = whence.build(task, train, tmp_path / str(wide), config=config, runtime=QUIET)
        codes.append(whence.score_table(store, task, queries, runtime=QUIET).scores.flatten())
    held = sized[0].held_out
    assert held and types == [(held, torch.float64), (8, torch.float64), (held, torch.bfloat16), (8, torch.bfloat16)]
    assert sized[0].sample_bytes - sized[1].sample_bytes == 2 * (8 + held) * coordinates
    assert torch.corrcoef(torch.stack(codes))[0, 1] > 0.99


def test_a_sample_is_taken_in_parts(tmp_path, monkeypatch):
    task, train, queries = split("linear")
    monkeypatch.setattr(codes_module, "CHUNK_NUMBERS", 3 * 48)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET)
    wanted = whence.attribute(
        task,
        train,
        queries,
        method=whence.EKFAC(damping=whence.Damping(relative=0.1)),
        runtime=whence.Runtime(batch_positions=40, quiet=True),
    )
    scores = whence.score_table(store, task, queries, runtime=QUIET).scores
    torch.testing.assert_close(scores, wanted.scores, rtol=1e-6, atol=1e-9 * float(wanted.scores.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "tied", "applied_twice"])
def test_gradients_of_a_batch_take_no_more_than_their_room(tmp_path, monkeypatch, name):
    """While a batch is encoded, each of its examples holds its whole whitened gradient; scores do not depend on how many do."""
    task, train, queries = split(name)
    together, encode = [], Aligned.encode

    def counted(encoder, rows_BM):
        together.append(len(rows_BM))
        return encode(encoder, rows_BM)

    monkeypatch.setattr(Aligned, "encode", counted)
    config = whence.BuildConfig(dtype="float64", **PLAIN)
    wanted = whence.score_table(
        whence.build(task, train, tmp_path / "w", config=config, runtime=QUIET), task, queries, runtime=QUIET
    )
    assert max(together) > 2
    coordinates = sum(unit.outputs * unit.inputs for unit in plan_units(task).units)
    monkeypatch.setattr("whence.score.query._BATCH_NUMBERS", 2 * coordinates)
    together.clear()
    found = whence.score_table(
        whence.build(task, train, tmp_path / "s", config=config, runtime=QUIET), task, queries, runtime=QUIET
    )
    assert max(together) == 2
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-6, atol=1e-9 * float(wanted.scores.abs().max()))


def test_a_loss_without_a_likelihood_takes_the_data_for_labels(tmp_path):
    model = torch.nn.Linear(6, 3).double()
    task = whence.Custom(
        model,
        lambda model, batch: (model(batch["inputs"]) - batch["wanted"]).abs().sum(1),
        collate=lambda records: {key: torch.stack([record[key] for record in records]) for key in ("inputs", "wanted")},
    )
    records = [{"inputs": torch.randn(6).double(), "wanted": torch.randn(3).double()} for _ in range(9)]
    store = whence.build(task, records, tmp_path / "s", config=whence.BuildConfig(dtype="float64", **PLAIN), runtime=QUIET)
    table = whence.score_table(store, task, records[:2], runtime=QUIET)
    wanted = whence.attribute(
        task,
        records,
        records[:2],
        method=whence.EKFAC(damping=whence.Damping(relative=0.1), fit=whence.FitConfig(labels="dataset")),
        runtime=QUIET,
    )
    torch.testing.assert_close(table.scores, wanted.scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bytes_per_example": 64, "shared_bytes": "much"}, "found shared_bytes='much'; needed a number of bytes"),
        ({"bytes_per_example": 15}, "found bytes_per_example=15; needed 16 or more"),
        ({"bytes_per_example": 64, "rank": 4}, "found bytes_per_example=64 with a rank or a dtype; needed one of them"),
        ({"bytes_per_example": 64, "method": "logra"}, "for the method logra; needed a method that whitens its rows"),
        ({"relative_damping": 0.1, "method": "lorif"}, "found relative_damping=0.1 for the method lorif"),
        ({"relative_damping": -1.0}, "found relative_damping=-1.0; needed 0 or more"),
        ({"projection": "gaussian"}, "found projection=gaussian for aligned; needed .* none where axes are learned"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, text):
    with pytest.raises((BadInput, UnknownOption), match=text):
        whence.build(
            make_task(), make_records(), tmp_path / "s", config=whence.BuildConfig(**{**PLAIN, **options}), runtime=QUIET
        )


def test_damping_of_a_query_is_refused(tmp_path):
    whence.build(make_task(), make_records(), tmp_path / "s", config=whence.BuildConfig(rank=4, **PLAIN), runtime=QUIET)
    with pytest.raises(BadInput, match=r"found damping for a store of aligned; needed the damping .* another relative_damping"):
        whence.score_table(
            open_store(tmp_path / "s"), make_task(), make_records(2), damping=whence.Damping(relative=0.2), runtime=QUIET
        )


def test_gradients_of_zero_have_no_code(tmp_path):
    task = make_task()
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.zero_()
    dead = whence.Custom(
        task.model,
        lambda model, batch: model(batch["inputs"]).sum(1) * 0,
        collate=lambda records: {"inputs": torch.stack([record["inputs"] for record in records])},
    )
    records = [{"inputs": record["inputs"]} for record in make_records()]
    with pytest.raises(BadInput, match="found gradients that are zero in all 10 examples of the sample"):
        whence.build(dead, records, tmp_path / "s", config=whence.BuildConfig(**PLAIN), runtime=QUIET)


def test_shared_bytes_are_kept(tmp_path):
    """By fewer directions of bases, by fewer axes, and those by fewer bits."""
    made = torch.Generator().manual_seed(0)
    task = whence.Classification(torch.nn.Linear(300, 150))
    records = [{"inputs": torch.randn(300, generator=made), "label": place % 150} for place in range(30)]
    kept = {}
    for most in (600_000, 800_000, 1_400_000, 8_000_000):
        store = whence.build(
            task,
            records,
            tmp_path / str(most),
            config=whence.BuildConfig(bytes_per_example=64, shared_bytes=most, **PLAIN),
            runtime=QUIET,
        )
        tensors = store.file("codes.safetensors")
        assert sum(tensor.nbytes for tensor in tensors.values()) <= most + 4096, most
        kept[most] = int(tensors["axes_width"]), int(tensors["axes_bits"])
    assert kept[8_000_000] == (30, 32) and kept[600_000][1] < 32, kept


@pytest.mark.parametrize("bits", [8, 4, 1])
@pytest.mark.parametrize("width", [3, 13, 64])
def test_codes_by_integers_are_those_by_floating_point(bits, width):
    torch.manual_seed(0)
    axes = Axes.of(torch.randn(TURNED + 23, width) * 10 ** torch.randn(TURNED + 23, 1), bits, 0, seed=5)
    rows = torch.randn(4, len(axes.codes)) * torch.tensor([1e-25, 1.0, 1e20, 0.0])[:, None]
    for chosen, numbers in axes.blocks():
        part = rows[:, chosen]
        found = axes.product(part, chosen, axes.room(torch.int8)).double()
        sizes = (part.double().abs() @ numbers.double().abs()).clamp_min(1e-300)
        assert float(((found - part.double() @ numbers.double()).abs() / sizes).max()) < 3e-7
    rows[1, 5], rows[0, 7] = torch.nan, torch.inf
    is_finite = axes.product(rows[:, axes.slices()[0]], axes.slices()[0], axes.room(torch.int8)).isfinite().all(1)
    assert is_finite.tolist() == [False, False, True, True]


def bases_of(size):
    """Every kind of basis, with the matrix that it stands for."""
    torch.manual_seed(size)
    square = torch.linalg.qr(torch.randn(size, size).double())[0]
    reflected = Reflected.towards(torch.linalg.qr(torch.randn(size, 3).double())[0])
    bands = torch.zeros(size, dtype=torch.int64).index_fill(0, torch.tensor([0, 2]), -1)
    block = Blocked(torch.linalg.qr(torch.randn(2, 2).double())[0], torch.tensor([0, 2]), bands)
    one = torch.eye(size).double()
    return [(None, one), (square, square), (reflected, reflected.written_out()), (block, block.after(one))]


@pytest.mark.parametrize("kept", [None, [], [0, 1, 9], [5], list(range(0, 63, 2))])
@pytest.mark.parametrize("is_hot", [False, True])
def test_kept_coordinates_are_those_of_whole_gradients(kept, is_hot):
    """Directions that no kept coordinate has are never made: what is kept must be what the whole product has there."""
    unit, torch_kept = Unit("w", 7, 9, ("w",)), None if kept is None else torch.tensor(kept, dtype=torch.int64)
    for outputs, left_OO in bases_of(7):
        for inputs, right_II in bases_of(9):
            torch.manual_seed(0)
            weights_OI = torch.rand(7, 9).double()
            given = OneHot(torch.randint(7, (2, 4)), 7, torch.float64) if is_hot else Dense(torch.randn(2, 4, 7).double())
            pair = Pair(given, Dense(torch.randn(2, 4, 9).double()))
            rows = Whitened(Kronecker((unit,), (outputs,), (inputs,)), (weights_OI,), (torch_kept,)).rows(2)
            rows(0, pair)
            whole = (left_OO.T @ pair.gradient() @ right_II * weights_OI).flatten(1)
            wanted = whole if torch_kept is None else whole[:, torch_kept]
            torch.testing.assert_close(rows.finished()[0][:, 0].double(), wanted, rtol=1e-10, atol=1e-12)

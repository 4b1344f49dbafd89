"""What axes leave, sketched: the formula in dense matrices, and scores of positions that add up to those of codes."""

from importlib import import_module

import pytest
import torch

import whence
from tests import zoo
from tests.reference.aligned import codes_with_rest, low_rank_scores, whitened_rows
from tests.settings import QUIET
from tests.test_store import contents, make_records, make_task
from whence.capture import plan_units
from whence.compress import TURNED, Aligned, Axes, Kronecker, Residual, Whitened, turn
from whence.curvature import Choosing, Code, code_axes, fit_ekfac, load_axes
from whence.curvature.code_choice import Trial, rest_share, rounded
from whence.data import Dataset
from whence.errors import StoreMismatch
from whence.load import load_task
from whence.pipeline.stored import code_size as sizes
from whence.pipeline.stored import learn_code as codes_module
from whence.pipeline.stored.encoders import stored_encoder
from whence.pipeline.stored.prepared import PreparedQuery
from whence.progress import Meter
from whence.records import Unit
from whence.score import Batching, gradient_rows, token_scores
from whence.settings import FitConfig
from whence.store import read_fidelity, verify_store

PLAIN = {"method": "aligned", "batch_positions": 40, "rows_per_shard": 4}

SIZE = TURNED + 700


def encoder(bits, root=0.6, width=5, mixtures=16):
    made = torch.Generator().manual_seed(0)
    unit = Unit("a", 7, SIZE // 7 + 1, ("a",))
    size = unit.outputs * unit.inputs
    whitened = Whitened(Kronecker((unit,), (None,), (None,)), (torch.ones(unit.outputs, unit.inputs).double(),), (None,))
    axes_MK = torch.linalg.qr(torch.randn(size, width, generator=made).double())[0]
    axes = Axes.of(axes_MK, 32, 0, seed=3)
    if bits < 32:
        parts = [Axes.of(part, bits, place * TURNED, seed=3) for place, part in enumerate(axes_MK.split(TURNED))]
        axes = Axes(torch.cat([part.codes for part in parts]), torch.cat([part.scales_M for part in parts]), bits, width)
    sketch = Residual.sketch_of(size, 20, mixtures, seed=3, device=torch.device("cpu"))
    axes_RK = torch.randn(mixtures, width, generator=made).double()
    held = 32 if bits == 32 else 8
    return Aligned(whitened, axes, "int4", 3, Residual(sketch, *Residual.rounded(axes_RK, held), held, width, root))


@pytest.mark.parametrize("bits", [32, 8, 1])
def test_codes_are_the_formula(bits):
    made = encoder(bits)
    rows = torch.randn(4, made.whitened.weights[0].numel(), generator=torch.Generator().manual_seed(1)).double()
    found = torch.cat(made.encode(rows), 1)
    torch.testing.assert_close(found, codes_with_rest(made, rows), rtol=1e-6, atol=1e-6)
    assert made.shapes() == [(1, 5), (1, 16)] and len({unit.name for unit in made.units}) == 2


@pytest.mark.parametrize("bits", [32, 8, 1])
def test_going_back_is_the_transposed_map(bits):
    made = encoder(bits)
    made_by = torch.Generator().manual_seed(2)
    query = torch.randn(21, generator=made_by).double()
    rows = torch.randn(3, made.whitened.weights[0].numel(), generator=made_by).double()
    (found,) = made.back([query[:5], query[5:]])
    torch.testing.assert_close(rows @ found[0], codes_with_rest(made, rows) @ query, rtol=1e-6, atol=1e-6)


def with_rest(monkeypatch):
    """Only codes that keep a part of what the axes leave, of a sample that is smaller than the data."""
    monkeypatch.setattr(sizes, "_WITH_REST", ("int4",))
    monkeypatch.setattr(sizes, "_FEWEST_HELD", 4)
    # By its name: the room has a function of that name.
    monkeypatch.setattr(import_module("whence.curvature.code_axes"), "_FEW_MEMBERS", 2.0)
    monkeypatch.setattr(Trial, "agreement", lambda self, code: (0.5, 0.25) if code.rest else (0.0, 0.0))


def test_stores_hold_codes_of_the_formula(tmp_path, monkeypatch):
    with_rest(monkeypatch)
    task, data = zoo.make("gpt2", count=24)
    train, queries = Dataset(data.examples[4:]), Dataset(data.examples[:4])
    store = whence.build(
        task, train, tmp_path / "s", config=whence.BuildConfig(axes_examples=12, bytes_per_example=24, **PLAIN), runtime=QUIET
    )
    blueprint, plan = store.blueprint, plan_units(task)
    made = stored_encoder(store, plan, task)
    assert [unit.projected for unit in blueprint.units] == [(1, blueprint.rank), (1, made.residual.width_R)]
    assert store.codec.row_bytes() <= 24 and verify_store(store) == [] and made.residual.root == 0.5
    curvature = fit_ekfac(task, plan, train, FitConfig(), max_positions=40, quiet=True)

    def codes(examples, objective):
        whitened = torch.cat(whitened_rows(task, plan, curvature, 0.1, examples, objective), 1)
        return codes_with_rest(made, whitened).split([blueprint.rank, made.residual.width_R], 1)

    asked, rows = codes(queries.examples, "measurement"), codes(train.examples, "loss")
    bits = blueprint.codec().bits
    assert bits == (4, 1)
    wanted = sum(left @ rounded(right, size).T for left, right, size in zip(asked, rows, bits, strict=True)) / -len(train)
    table = whence.score_table(store, task, queries, runtime=QUIET)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_token_scores_add_up(tmp_path, monkeypatch):
    with_rest(monkeypatch)
    task, data = zoo.make("gpt2", count=20)
    store = whence.build(
        task, data, tmp_path / "s", config=whence.BuildConfig(axes_examples=12, bytes_per_example=24, **PLAIN), runtime=QUIET
    )
    queries = Dataset(data.examples[:2])
    asked = PreparedQuery.prepare(store, task, queries, whence.Damping(), True)
    rows = gradient_rows(
        task, asked.plan, asked.encoder, data.examples, batching=Batching(40), progress=Meter("", 1, None)
    ).units
    for place in (1, 0):
        for row, example in enumerate(data.examples):
            parts = token_scores(task, asked.plan, asked.encoder, example, [unit[place] for unit in asked.preconditioned])
            whole = sum(float((unit[row] * ready[place]).sum()) for unit, ready in zip(rows, asked.preconditioned, strict=True))
            assert float(parts.sum()) == pytest.approx(whole, rel=1e-5, abs=1e-9)


def test_a_build_goes_on_with_its_code(tmp_path, monkeypatch):
    with_rest(monkeypatch)
    options = {"axes_examples": 12, "bytes_per_example": 24, **PLAIN}
    first = whence.build(make_task(), make_records(20), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    code = (first.folder / "codes.safetensors").read_bytes()
    grown = whence.build(
        make_task(), make_records(5, first=30), tmp_path / "s", append=True, config=whence.BuildConfig(**options), runtime=QUIET
    )
    assert len(grown) == 25 and (grown.folder / "codes.safetensors").read_bytes() == code and verify_store(grown) == []
    with pytest.raises(StoreMismatch, match="found a code of"):
        whence.build(
            make_task(),
            make_records(20),
            tmp_path / "s",
            config=whence.BuildConfig(**{**options, "bytes_per_example": 20}),
            runtime=QUIET,
        )


def test_the_rest_is_kept_where_it_is_worth_its_bytes():
    """Documents with a part of their own and one that all share: axes hold what is shared, and signs of the rest tell the others apart."""
    made = torch.Generator().manual_seed(0)
    rest = torch.randn(600, 900, generator=made).double()
    shared = torch.randn(600, 4, generator=made).double() @ torch.randn(4, 900, generator=made).double()
    twins = torch.cat([rest[:60], rest[:60] + 0.1 * rest[60:120]])
    rows, held = shared[:200] * 0.01 + rest[200:400], shared[400:520] * 0.01 + twins
    choices = [Code(400, "int1", 1), Code(64, "int1", 1, 320)]
    learned = code_axes([rows], [held], Choosing(choices, 1 << 24, 0, 320, members=0.0))
    assert learned.code.rest == 320 and 0.2 < learned.share <= 1
    nothing = code_axes([rows], [shared[400:520]], Choosing(choices, 1 << 24, 0, 320, members=0.0))
    assert nothing.expected <= 1.0


def test_the_share_is_that_of_least_error():
    made = torch.Generator().manual_seed(0)
    exact = torch.randn(80, 80, generator=made).double()
    noisy = exact + 2 * torch.randn(80, 80, generator=made).double()
    assert rest_share(noisy, exact) == pytest.approx(0.2, abs=0.03)
    assert rest_share(exact, exact) == pytest.approx(1.0) and rest_share(-noisy, exact) == 0


def streamed(monkeypatch):
    """Of 60 documents 30 teach the axes, one pass after the other, and 8 judge the code."""
    for name, value in {"_MANY": 1, "_STREAMED": 30, "_MOST_HELD_OUT": 8, "_FEWEST_HELD": 4}.items():
        monkeypatch.setattr(sizes, name, value)
    monkeypatch.setattr(codes_module, "CHUNK_NUMBERS", 1 << 13)


def test_axes_of_many_documents_are_the_leading_directions(tmp_path, monkeypatch):
    """Where sketches are the rows themselves."""
    streamed(monkeypatch)
    task, data = zoo.make("linear", count=64)
    train, queries = Dataset(data.examples[4:]), Dataset(data.examples[:4])
    store = whence.build(
        task, train, tmp_path / "s", config=whence.BuildConfig(dtype="float64", rank=9, **PLAIN), runtime=QUIET
    )
    places = store.file("codes.safetensors")["sample"].tolist()
    assert places == [place * 60 // 30 for place in range(30)]
    curvature = fit_ekfac(task, plan_units(task), train, FitConfig(), max_positions=40, quiet=True)
    rows, asked = (
        torch.cat(whitened_rows(task, plan_units(task), curvature, 0.1, part.examples, objective), 1)
        for part, objective in ((train, "loss"), (queries, "measurement"))
    )
    wanted = low_rank_scores(rows[places], rows, asked, 9)
    table = whence.score_table(store, task, queries, runtime=QUIET)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))


def test_many_documents_teach_a_code_with_a_rest(tmp_path, monkeypatch):
    with_rest(monkeypatch)
    streamed(monkeypatch)
    monkeypatch.setattr("whence.curvature.range_finder.SKETCHED", 40)
    task, data = zoo.make("gpt2", count=60)
    store = whence.build(task, data, tmp_path / "s", config=whence.BuildConfig(bytes_per_example=40, **PLAIN), runtime=QUIET)
    again = whence.build(task, data, tmp_path / "t", config=whence.BuildConfig(bytes_per_example=40, **PLAIN), runtime=QUIET)
    assert contents(store.folder) == contents(again.folder) and verify_store(store) == []
    # The sketch of the axes is that of the axes: where they hold all of a document nothing is left of it.
    tensors = store.file("codes.safetensors")
    axes, made = load_axes(tensors), stored_encoder(store, plan_units(task), task)
    numbers = torch.cat([block for _, block in axes.blocks()])
    turned = numbers.T if axes.bits < 32 else turn(numbers.T, 0, seed=0)
    sketched = made.residual.sketch.times(turned)
    left = made.residual.less_axes(sketched, numbers.T @ numbers)
    assert float(left.norm() / sketched.norm()) < 1e-4
    fidelity = next(iter(read_fidelity(store).values()))
    assert fidelity.learned.documents == 30 and fidelity.others is not None
    assert any("signs of" in note for note in whence.query(store, task, Dataset(data.examples[:2]), runtime=QUIET).notes)


def test_a_sample_that_is_held_may_leave_a_rest_in_float32(tmp_path, model_folder):
    """Documents outside the sample, a budget of bytes and rows of float32: what most builds of a few thousand documents are."""
    task, _ = load_task(str(model_folder))
    texts = [{"id": f"t{number}", "text": f"the cat {number} sat on mat {number * 7 % 11}"} for number in range(160)]
    store = whence.build(
        task, texts, tmp_path, config=whence.BuildConfig(bytes_per_example=64, axes_examples=80), runtime=QUIET
    )
    assert 0 < store.codec.row_bytes() <= 64

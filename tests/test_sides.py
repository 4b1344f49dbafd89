"""Sides that are too long for all of their eigenvectors: their bases against dense twins, how they are chosen, and what is said of them."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference.reflections import evened, sketched, written_out
from tests.settings import QUIET
from whence.capture import plan_units
from whence.cli import main
from whence.curvature import fit_ekfac, fit_kfac, load_whitened, resolved, save_whitened, whiten
from whence.curvature.damping import ResolvedDamping
from whence.curvature.sides import Probes, directions_of, units_of_classes
from whence.data import Dataset
from whence.pipeline.forecast.exact import forecast_exact
from whence.records import Unit
from whence.reflections import Blocked, Reflected
from whence.settings import FitConfig
from whence.store import DiskBytes, read_tensors

CPU = torch.device("cpu")
CUT = FitConfig(largest_side=5, directions=4)


def close(found, wanted, rtol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()) + 1e-20)


def fitted(folder, config, fit=fit_kfac, name="gpt2"):
    task, dataset = zoo.make(name, count=6)
    plan = plan_units(task)
    return plan, fit(task, plan, dataset, config, max_positions=1000, quiet=True, folder=folder)


@pytest.mark.parametrize("directions", [1, 3, 6])
def test_reflections_are_their_matrix(directions):
    generator = torch.Generator().manual_seed(directions)

    def chance(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wanted = torch.linalg.qr(chance(7, directions))[0]
    basis = Reflected.towards(wanted)
    whole = written_out(basis)
    close(whole[:, :directions].abs(), wanted.abs())
    close(whole.T @ whole, torch.eye(7).double())
    rows, ids = chance(2, 3, 7), torch.tensor([[0, 6, 6], [2, 3, 0]])
    close(basis.written_out(), whole)
    close(basis.after(rows), rows @ whole)
    close(basis.back(rows), rows @ whole.T)
    close(basis.rows(ids, torch.float64), whole[ids])
    close(basis.squares_times(rows[0].T), whole.square() @ rows[0].T)
    # Rounded vectors still make an orthonormal basis.
    rounded = Reflected.of(basis.vectors_NK.bfloat16().double()).written_out()
    close(rounded.T @ rounded, torch.eye(7).double())


def test_a_block_among_axes_is_its_matrix():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    block = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    basis = Blocked(block, torch.tensor([1, 4, 5]), torch.tensor([0, -1, 0, 1, -1, -1, 1]))
    whole, ids = written_out(basis), torch.tensor([[0, 6, 4], [5, 3, 1]])
    close(whole.T @ whole, torch.eye(7).double())
    close(basis.after(rows), rows @ whole)
    close(basis.back(rows), rows @ whole.T)
    close(basis.rows(ids, torch.float64), whole[ids])
    close(basis.squares_times(rows[0].T), whole.square() @ rows[0].T)
    close(basis.even(rows[0].T.clone()), evened(rows[0].T, basis))
    close(basis.leading(rows[0, 0]), rows[0, 0, [1, 4, 5]])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_outputs_of_a_head_get_the_eigenvectors_of_likely_classes(tmp_path, name):
    plan, _ = fitted(tmp_path / "whole", FitConfig(largest_side=10**6), name=name)
    _, found = fitted(tmp_path / "cut", CUT, name=name)
    whole, cut = (read_tensors(tmp_path / place / "factors.safetensors") for place in ("whole", "cut"))
    index, block = next((i, one) for i, one in enumerate(found.blocks) if isinstance(one.outputs_OO, Blocked))
    places, total = block.outputs_OO.places_K, 0.0
    for role in [key.split(".")[2] for key in whole if key.startswith(f"outputs.{index}.")]:
        moment, theirs = whole[f"outputs.{index}.{role}"].double(), whole[f"inputs.{index}.{role}"].double()
        moment = moment if moment.ndim == 2 else torch.diag(moment)
        close(cut[f"outputs.{index}.{role}"].double(), moment.diagonal(), 1e-6)
        total = total + theirs.diagonal().sum() / whole[f"count.{index}.{role}"] * moment
    inside = written_out(block.outputs_OO).T @ total @ written_out(block.outputs_OO)
    few = inside[places][:, places]
    close(few, torch.diag(few.diagonal()), 1e-6)
    # The rest are axes in bands that fall.
    bands, rest = block.outputs_OO.bands_N, [place for place in range(len(total)) if place not in places.tolist()]
    order = sorted(rest, key=lambda place: -float(total[place, place]))
    assert [int(bands[place]) for place in order] == sorted(int(bands[place]) for place in rest)
    task, dataset = zoo.make(name, count=6)
    mass = sum(outputs.softmax(-1).mul(1 - outputs.softmax(-1)).sum(0) for outputs in logits(task, dataset))
    assert set(places.tolist()) == set(mass.argsort(descending=True)[:4].tolist())
    assert "4 of" in found.note and "likely classes with" in found.note


def logits(task, dataset):
    with torch.no_grad():
        return [task.outputs(task.model.eval(), task.collate([example])).values_MC for example in dataset.examples]


@pytest.mark.parametrize("name", ["gpt2", "llama", "linear"])
def test_a_cut_basis_is_that_of_the_dense_sketch(tmp_path, name):
    """Tied and untied embeddings, heads, and layers with a joined bias: sketches, directions and K-FAC's values by dense matrices."""
    plan, _ = fitted(tmp_path / "whole", FitConfig(largest_side=10**6), name=name)
    _, found = fitted(tmp_path / "cut", CUT, name=name)
    whole, cut = (read_tensors(tmp_path / place / "factors.safetensors") for place in ("whole", "cut"))
    probes, seen = Probes(plan.units, CUT), 0
    for index, block in enumerate(found.blocks):
        for side, other, basis in (("outputs", "inputs", block.outputs_OO), ("inputs", "outputs", block.inputs_II)):
            if not isinstance(basis, Reflected):
                continue
            seen += 1
            omega = probes.omega(index, side).double()
            roles = [key.split(".")[2] for key in whole if key.startswith(f"{side}.{index}.")]
            total, size = 0.0, len(omega)
            for role in roles:
                moment, theirs = whole[f"{side}.{index}.{role}"].double(), whole[f"{other}.{index}.{role}"].double()
                moment = moment if moment.ndim == 2 else torch.diag(moment)
                if role == "product":
                    close(cut[f"{side}_sketch.{index}.{role}"].double(), moment @ omega, 1e-6 if name == "llama" else 1e-9)
                weight = (theirs.diagonal() if theirs.ndim == 2 else theirs).sum() / whole[f"count.{index}.{role}"]
                total = total + weight * moment
            # The directions are the eigenvectors of the sum as its sketch has it: that is diagonal in them, and nothing in the rest.
            columns, near = written_out(basis), sketched(total, omega)
            inside = columns.T @ near @ columns
            close(inside, torch.diag(inside.diagonal()), 1e-5 if name == "llama" else 1e-7)
            assert float(inside.diagonal()[basis.directions :].abs().max()) < 1e-5 * float(near.trace())
            assert size == len(columns)
    assert seen


def test_the_trace_is_that_of_all_eigenvectors_and_no_directions_are_the_axes():
    plan, exact = fitted(None, FitConfig(), fit_ekfac, "linear")
    _, most = fitted(None, FitConfig(largest_side=1, directions=10**6), fit_ekfac, "linear")
    _, axes = fitted(None, FitConfig(largest_side=1, directions=0), fit_ekfac, "linear")
    assert exact.trace() == pytest.approx(most.trace()) == pytest.approx(axes.trace())
    assert all(block.outputs_OO is block.inputs_II is None for block in axes.blocks)
    assert "bases are cut at" in most.note and "% of the trace" in most.note
    assert "axes" in axes.note and "bases" not in exact.note
    assert len(plan.units) == len(most.blocks)


def test_half_of_a_cut_inverse_is_kept_in_a_file():
    plan, found = fitted(None, CUT, fit_ekfac)
    white = whiten(found, ResolvedDamping(0.1, None, ""), 10**9)
    again = load_whitened(plan.units, save_whitened(white), CPU)
    rows = [torch.ones(1, unit.outputs, unit.inputs).double() for unit in plan.units]
    halves = found.half(rows, ResolvedDamping(0.1, None, ""))
    for index, (half, row) in enumerate(zip(halves, rows, strict=True)):
        left, right = written_out(again.bases.outputs[index]), written_out(again.bases.inputs[index])
        turned = row[0] if left is None else left.T @ row[0]
        turned = turned if right is None else turned @ right
        close(turned * again.weights[index], half[0])


def test_memory_and_time_choose_the_longest_side_and_a_joined_bias_does_not():
    units = [
        Unit("a", 4096, 4096, ("a",)),
        Unit("b", 4096, 4097, ("b",)),
        Unit("c", 14336, 4097, ("c",)),
        Unit("d", 256000, 4096, ("d",)),
    ]
    few = resolved(None, units, device=CPU, positions=1000)
    assert few.largest_side == 14336 and [directions_of(size, few) for size in (4096, 4097, 14336, 256000)] == [
        4096,
        4097,
        14336,
        1024,
    ]
    tight = resolved(None, units, device=CPU, positions=1000, room_bytes=2 * 32 * 4096**2)
    assert tight.largest_side == 4096 and directions_of(4097, tight) == 4097 and directions_of(14336, tight) == 1024
    many = [unit for unit in units[:3] for _ in range(20)]
    assert resolved(None, many, device=CPU, positions=1000).largest_side == 4097
    assert resolved(None, many, device=CPU, positions=10**9).largest_side == 14336
    asked = FitConfig(largest_side=7, directions=3)
    assert resolved(asked, units, device=CPU, positions=1) == asked


def test_a_fit_keeps_the_sides_it_was_begun_with(tmp_path):
    _, begun = fitted(tmp_path, CUT)
    _, again = fitted(tmp_path, None)
    assert begun.note == again.note and "4 of" in again.note


def test_answers_and_forecasts_say_which_bases_are_cut():
    task, train = zoo.make("linear", count=6)
    told = forecast_exact(task, train, 2, method=whence.EKFAC(fit=whence.FitConfig(largest_side=1, directions=2)))
    assert "2 of" in str(told) and "directions" in str(told)
    table = whence.attribute(
        task,
        train,
        Dataset(train.examples[:2]),
        method=whence.EKFAC(fit=whence.FitConfig(largest_side=1, directions=2)),
        runtime=QUIET,
    )
    assert any("bases are cut at" in note and "% of the trace" in note for note in table.notes)


def test_rows_and_what_they_share_are_told_apart():
    assert str(DiskBytes(row_bytes=1024, rows=1000 << 10, texts=50 << 10, shared=3 << 20)) == (
        "4,122 KiB: 1,000 KiB of rows (1,024 bytes each), 50 KiB of their texts and 3,072 KiB shared by all of them"
    )
    much = DiskBytes(row_bytes=1024, rows=1024 * 10**6, texts=0, shared=4 << 30)
    assert str(much).startswith("5,073 MiB: ") and str(much).endswith("4,096 MiB shared by all of them")
    little = DiskBytes(row_bytes=40, rows=48 * 40, texts=100, shared=1200 << 20)
    assert "times the rows; with so few examples attribute gives the scores without a store" in str(little)


def test_a_store_says_which_bases_are_cut_and_how_large_it_is(tmp_path, monkeypatch, capsys):
    task, train = zoo.make("gpt2", count=6)
    monkeypatch.setattr("whence.pipeline.stored.learn_code.fit_config", lambda task, dataset, config: CUT)
    store = whence.build(task, train, tmp_path, config=whence.BuildConfig(method="aligned", batch_positions=64))
    assert "of rows (" in capsys.readouterr().err
    assert "bases are cut at" in store.blueprint.task["bases"]
    assert any("likely classes with" in note for note in whence.query(store, task, train).notes)
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "likely classes with" in printed and "shared by all of them" in printed
    exact = whence.attribute(
        task,
        train,
        train,
        method=whence.EKFAC(fit=whence.FitConfig(largest_side=5, directions=4)),
        runtime=whence.Runtime(quiet=True, batch_positions=64),
    ).scores
    found = whence.score_table(store, task, train, runtime=QUIET).scores
    assert torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1] > 0.99


def test_a_layer_as_long_as_the_vocabulary_is_no_head():
    units = [
        Unit("wte", 30, 8, ("wte",)),
        Unit("mlp", 30, 8, ("mlp",)),
        Unit("head", 30, 8, ("head",)),
        Unit("norm", 1, 8, ("norm",)),
    ]
    assert units_of_classes(units, 30) == {2}
    tied = [Unit("wte", 30, 8, ("wte",), ("wte", "head")), *units[1:2]]
    assert units_of_classes(tied, 30) == {0}

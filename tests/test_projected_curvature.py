"""K-FAC, EK-FAC and cosines among projected gradients: scores equal the formulas as written, with every matrix formed."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.reference.projected_curvature import damped, fisher, inner_products
from tests.settings import QUIET
from whence.capture import plan_units
from whence.compress import Kronecker, projected_shape
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt
from whence.methods import METHODS
from whence.pipeline.stored.row_vectors import check_vectors
from whence.store import read_tensors, verify_store

MODELS = ("linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "lone_parameter")
OPTIONS = {"dtype": "float64", "rows_per_shard": 4, "batch_positions": 40}
STRUCTURED = [name for name, method in METHODS.items() if method.structure != "full"]


def projected(task, examples, rank, objective="loss"):
    """Gradients between the projections that a store of this rank has, per unit of shape (examples, P, R)."""
    plan = plan_units(task)
    shapes = [projected_shape(unit, rank) for unit in plan.units]
    sides = Kronecker.random(plan.units, shapes, kind="rademacher", seed=0, device=task.device)
    gradients = unit_gradients(task, plan, dense_gradients(task, examples, objective))
    parts = zip(gradients, plan.units, sides.outputs, sides.inputs, strict=True)
    eye = torch.eye
    return [
        (eye(unit.outputs).double() if left is None else left.double()).T
        @ gradient.view(len(examples), unit.outputs, unit.inputs)
        @ (eye(unit.inputs).double() if right is None else right.double())
        for gradient, unit, left, right in parts
    ]


def asked(tmp_path, name, method, rank, relative=0.2):
    """A store's scores, and training rows and queries as matrices."""
    task, dataset = zoo.make(name, count=14)
    train, queries = Dataset(dataset.examples[3:]), Dataset(dataset.examples[:3])
    config = whence.BuildConfig(method=method, rank=rank, **OPTIONS)
    store = whence.build(task, train, tmp_path / "store", config=config, runtime=QUIET)
    table = whence.score_table(store, task, queries, damping=whence.Damping(relative=relative), runtime=QUIET)
    return store, table, projected(task, train.examples, rank), projected(task, queries.examples, rank, "measurement")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [2, 1000])
@pytest.mark.parametrize("method", STRUCTURED)
def test_scores_equal_the_naive_formula(tmp_path, name, rank, method):
    store, table, rows, queries = asked(tmp_path, name, method, rank)
    fishers = [damped(fisher(unit, METHODS[method].structure), 0.2) for unit in rows]
    wanted = -inner_products(rows, queries, fishers) / len(store)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))
    assert verify_store(store) == []


@pytest.mark.parametrize("method", STRUCTURED)
def test_the_trace_is_that_of_the_rows(tmp_path, method):
    store, _, rows, _ = asked(tmp_path, "gpt2", method, 3)
    tensors = read_tensors(store.folder / "curvature.safetensors")
    for index, unit in enumerate(rows):
        wanted = unit.square().sum() / len(unit)
        torch.testing.assert_close(tensors[f"values.{index}"].sum(), wanted)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert store.blueprint.curvature_bytes() == size


def test_one_row_a_unit_is_the_whole_fisher(tmp_path):
    """A bias or a norm has matrices of one row, where nothing is approximated."""
    tables = {}
    for method in ("logra", *STRUCTURED):
        _, tables[method], rows, _ = asked(tmp_path / method, "lone_parameter", method, 1000)
    assert any(unit.shape[1] == 1 for unit in rows)
    if all(1 in unit.shape[1:] for unit in rows):
        for method in STRUCTURED:
            torch.testing.assert_close(tables[method].scores, tables["logra"].scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [2, 1000])
def test_cosines_are_scores_over_the_roots_of_both_self_influences(tmp_path, name, rank):
    store, table, rows, queries = asked(tmp_path, name, "logra-cos", rank)
    fishers = [damped(fisher(unit, "full"), 0.2) for unit in rows]
    own_N, own_Q = (inner_products(units, units, fishers).diagonal().sqrt() for units in (rows, queries))
    wanted = -inner_products(rows, queries, fishers) / own_Q[:, None] / own_N
    torch.testing.assert_close(table.scores, wanted, rtol=1e-5, atol=1e-7)
    assert (
        table.unit == "cosine" and table.notes[-1] == "divided by the roots of the query's and of each document's own influence"
    )


def test_cosines_do_not_depend_on_who_asks_with_them(tmp_path):
    store, table, _, _ = asked(tmp_path, "gpt2", "logra-cos", 3)
    task, dataset = zoo.make("gpt2", count=14)
    alone = whence.score_table(store, task, Dataset(dataset.examples[:1]), damping=whence.Damping(relative=0.2), runtime=QUIET)
    torch.testing.assert_close(alone.scores[0], table.scores[0])


def test_vectors_of_cosines_are_refused(tmp_path):
    store, *_ = asked(tmp_path, "linear", "logra-cos", 2)
    with pytest.raises(BadInput, match="divided by norms that depend on the damping"):
        check_vectors(store)


@pytest.mark.parametrize("change", ["missing", "shape", "type"])
def test_damaged_curvature_is_refused(tmp_path, change):
    from whence.curvature import load_kronecker_fishers

    store, *_ = asked(tmp_path, "linear", "logra-ekfac", 2)
    tensors = dict(read_tensors(store.folder / "curvature.safetensors"))
    changed = {"missing": None, "shape": tensors["left.0"][:1], "type": tensors["left.0"].float()}[change]
    tensors = {name: value for name, value in (tensors | {"left.0": changed}).items() if value is not None}
    with pytest.raises(StoreCorrupt, match="curvature.safetensors"):
        load_kronecker_fishers(tensors, [unit.projected for unit in store.blueprint.units])

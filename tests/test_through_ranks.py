"""Back through a recorded run by several processes: the table of one, each process with its part of the data, or of the queries."""

import copy

import pytest

import whence
from tests.settings import keywords_of
from tests.test_distributed import processes, together
from tests.test_exact_ranks import assert_near, numbers
from tests.test_source import data, queries_of, train
from whence.distributed import Ranks

__all__ = ["processes"]  # the fixture

METHODS = {
    "tracin": {"per_segment": True},
    "source": {"segments": 2, "per_unit": True, "tokens_of": ["t0", "t59"]},
    "astra-source": {"segments": 1, "iterations": 2, "batch_examples": 7},
    "less": {"per_segment": True},
    "dvemb": {},
    "unroll": {},
}


def _attribute(ranks, folder, model, methods, factors=None):
    task = whence.Classification(copy.deepcopy(model))  # tensors that are handed to processes lie in memory that they share
    inputs, labels = data()
    examples = task.prepare(
        {"id": f"t{row}", "inputs": one, "label": int(label)}
        for row, (one, label) in enumerate(zip(inputs, labels, strict=True))
    )
    found = {}
    for method in methods:
        kept = {"factors": folder / f"factors-{method}"} if factors and "source" in method else {}
        options = {**METHODS[method], **kept, "run": folder / "run", "batch_positions": 12, "ranks": ranks}
        table = whence.attribute(task, examples, queries_of(task, 3), **keywords_of(method, **options))
        found[method] = {key: value.tolist() for key, value in numbers(table).items()}, list(table.notes)
    return found


@pytest.mark.parametrize(("name", "methods", "count"), [("momentum", tuple(METHODS), 2), ("adamw", ("source", "tracin"), 3)])
def test_several_processes_give_the_table_of_one(processes, tmp_path, name, methods, count):
    model, *_ = train(tmp_path / "run", name, kind="mlp", epochs=1, every=3)
    found = together(processes, _attribute, tmp_path, model, methods, count=count)
    assert all(mine == found[0] for mine in found)  # to the bit
    alone = _attribute(Ranks(), tmp_path, model, methods)
    for method, (tensors, notes) in alone.items():
        assert found[0][method][0].keys() == tensors.keys() and len(found[0][method][1]) == len(notes)
        for key, value in tensors.items():
            assert_near(found[0][method][0][key], value, f"{method}, {key}")


def test_what_processes_kept_serves_one(processes, tmp_path):
    """Each segment's curvature in a folder that all see."""
    model, *_ = train(tmp_path / "run", "adamw", kind="mlp", epochs=1, every=3)
    found = together(processes, _attribute, tmp_path, model, ("source",), True)
    again = _attribute(Ranks(), tmp_path, model, ("source",), True)
    assert_near(found[0]["source"][0]["scores"], again["source"][0]["scores"])
    assert sum(path.is_dir() for path in (tmp_path / "factors-source").iterdir()) == 2

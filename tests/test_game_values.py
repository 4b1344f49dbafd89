"""Shapley values of neighbours and Banzhaf values of runs, against their definitions written out."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import whence
from tests.settings import QUIET
from whence.errors import BadInput, Unsupported
from whence.evaluate import Bank, banzhaf_table, load_table, save_bank
from whence.score import knn_shapley, knn_shapley_values


def shapley(utility, count):
    """The mean over all orders of what each player adds."""
    values = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        for place, player in enumerate(order):
            values[player] += utility(order[: place + 1]) - utility(order[:place])
    return values / math.factorial(count)


@pytest.mark.parametrize("neighbours", [1, 2, 4, 9])
def test_neighbours_are_worth_their_shapley_values(neighbours):
    generator = torch.Generator().manual_seed(neighbours)
    distances = torch.rand(6, generator=generator, dtype=torch.float64)
    alike = torch.tensor([True, False, True, True, False, False])

    def utility(members):
        nearest = sorted(members, key=lambda member: float(distances[member]))[:neighbours]
        return sum(float(alike[member]) for member in nearest) / neighbours

    found = knn_shapley_values(distances, alike, neighbours)
    torch.testing.assert_close(found, shapley(utility, 6))
    assert float(found.sum()) == pytest.approx(utility(range(6)))


def digits(count=30):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return [{"id": f"r{number}", "inputs": row, "label": int(row[0] > 0)} for number, row in enumerate(rows)]


def test_values_of_a_classifier_and_its_wrong_labels():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    task = whence.Classification(model)
    records = digits()
    records[3] = {**records[3], "label": 1 - records[3]["label"]}
    train, queries = task.prepare(records[:20]), task.prepare(records[20:])
    table = knn_shapley(task, train, queries, neighbours=3, quiet=True)
    states = model[:2](torch.stack([record["inputs"] for record in records]))
    for row, query in enumerate(records[20:]):
        distances = (states[:20] - states[20 + row]).square().sum(1)
        alike = torch.tensor([record["label"] == query["label"] for record in records[:20]])
        torch.testing.assert_close(table.scores[row], knn_shapley_values(distances, alike, 3))
    values = whence.select.value_table(task, train, "knn-shapley", validation=queries, runtime=QUIET)
    assert values.values == "knn-shapley" and values.scores.shape == (10, 20)
    chosen = whence.select.select(values, config=whence.settings.SelectConfig(drop=2))
    assert "its Shapley value among neighbours is" in chosen.decisions[0].reason
    with pytest.raises(Unsupported, match="a Regression task; needed a classifier of one class each"):
        knn_shapley(whence.Regression(torch.nn.Linear(4, 1)), train, queries)
    with pytest.raises(BadInput, match="found neighbours=0; needed 1 or more"):
        knn_shapley(task, train, queries, neighbours=0)
    with pytest.raises(BadInput, match="by='knn-shapley' without a validation set"):
        whence.select.value_table(task, train, "knn-shapley", runtime=QUIET)


def game(members):
    """A utility in which two players are worth something only together."""
    members = set(members)
    return 2.0 * (0 in members) - 1.0 * (1 in members) + 3.0 * ({2, 3} <= members)


def bank_of(masks):
    values = torch.tensor([[[game(mask.nonzero()[:, 0].tolist()), 0.5]] for mask in masks], dtype=torch.float64)
    return Bank(masks, values, (0,), tuple("abcd"), ("game", "flat"), "nats")


def test_all_subsets_give_the_banzhaf_values(tmp_path, run):
    bank = bank_of(torch.tensor(list(itertools.product([False, True], repeat=4))))
    table = banzhaf_table(bank)
    expected = []
    for player in range(4):
        others = [other for other in range(4) if other != player]
        gains = [game([*chosen, player]) - game(chosen) for size in range(4) for chosen in itertools.combinations(others, size)]
        expected.append(sum(gains) / 2**3)
    torch.testing.assert_close(table.scores[0], torch.tensor(expected, dtype=torch.float64))
    assert expected == [2.0, -1.0, 1.5, 1.5] and table.scores[1].tolist() == [0.0] * 4 and "16 subsets of 50%" in table.notes[0]
    save_bank(bank, tmp_path / "bank")
    assert "standard error" in run("evaluate", tmp_path / "bank", "--banzhaf", tmp_path / "t")
    assert np.allclose(load_table(tmp_path / "t").scores[0], expected)
    assert json.loads((tmp_path / "t" / "table.json").read_text())["method"] == "Banzhaf (16 subsets)"
    assert "found no table; needed one or more to hold against the bank" in run("evaluate", tmp_path / "bank", status=2)


def test_runs_that_all_have_an_example_say_nothing_of_it():
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    masks[:, 1] = True
    with pytest.raises(BadInput, match="1 examples that fewer than two runs had, or fewer than two had not, such as 'b'"):
        banzhaf_table(bank_of(masks))


def test_select_by_neighbours_from_the_command_line(run, tmp_path):
    program = tmp_path / "job.py"
    program.write_text(
        "import torch, whence\ndef task():\n    torch.manual_seed(0)\n    return whence.Classification(torch.nn.Linear(4, 2))\n"
    )
    records = [{**record, "inputs": record["inputs"].tolist()} for record in digits()]
    for name, part in (("train", records[:20]), ("valid", records[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    words = [
        "select",
        tmp_path / "train.jsonl",
        "--model",
        f"{program}:task",
        "--by",
        "knn-shapley",
        "--keep",
        "50%",
        "-o",
        tmp_path / "o",
    ]
    assert json.loads(run(*words, "--validation", tmp_path / "valid.jsonl", "--json"))["kept"] == 10
    assert "found no --validation for --by knn-shapley" in run(*words, status=2)

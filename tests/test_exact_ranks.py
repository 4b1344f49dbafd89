"""The exact road by several processes: the table of one, whichever method, each process walking its part of the training data."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import whence
from tests import zoo
from tests.settings import keywords_of
from tests.test_distributed import JOB, ROOT, _command, processes, results, start, together
from whence.capture import plan_units
from whence.cli import main
from whence.curvature import Curvature, fit_ekfac
from whence.data import Dataset
from whence.distributed import Ranks
from whence.errors import BadInput, RankLost
from whence.settings import FitConfig

__all__ = ["processes"]  # the fixture

# Two orders of one sum differ by rounding; solvers hand that on, times the condition of the damped matrix.
BOUND = 1e-9
SETTINGS = {
    "ekfac": {"normalize": "cosine", "per_unit": True, "tokens_of": "first"},
    "kfac": {"query_rank": 2, "normalize": "relatif"},
    "grad-dot-exact": {},
    "pcg": {"iterations": 6, "tolerance": 1e-12},
    "cg": {"iterations": 6, "tolerance": 1e-12, "examples": 7},
    "astra": {"iterations": 8, "batch_examples": 5},
    "lissa": {"iterations": 8, "batch_examples": 5},
    "nystroem": {"rank": 4},
    "arnoldi": {"rank": 4, "iterations": 6},
    "datainf": {},
}


def case(name, count=14, queries=3):
    task, dataset = zoo.make(name, count=count)
    return task, Dataset(dataset.examples[queries:]), Dataset(dataset.examples[:queries])


def numbers(table):
    """Everything in a table, by name."""
    found = {"scores": table.scores} | {f"part {name}": part for name, part in table.parts.items()}
    return found | {f"tokens {name}": part for name, part in table.tokens.items()}


def _attribute(ranks, folder, name, methods, **more):
    task, train, queries = case(name)
    found = {}
    for method in methods:
        options = {**SETTINGS[method], **more}
        if "tokens_of" in options:
            options["tokens_of"] = [train.ids[0], train.ids[-1]]
        kept = {} if folder is None or method == "grad-dot-exact" else {"factors": folder / f"{method}"}
        table = whence.attribute(
            task,
            train,
            queries,
            **keywords_of(method, batch_positions=12, ranks=ranks, **options, **kept),
        )
        found[method] = {key: value.tolist() for key, value in numbers(table).items()}, table.notes[-1]
    return found


def assert_same(found, wanted):
    for method, (tensors, _) in wanted.items():
        assert found[method][0].keys() == tensors.keys()
        for key, value in tensors.items():
            assert_near(found[method][0][key], value, f"{method}, {key}")


def assert_near(found, wanted, what=""):
    ours, exact = (torch.tensor(value, dtype=torch.float64) for value in (found, wanted))
    torch.testing.assert_close(ours, exact, rtol=0, atol=BOUND * float(exact.abs().max()), msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize(("count", "methods"), [(2, tuple(SETTINGS)), (3, ("ekfac", "pcg", "astra"))])
def test_every_method_gives_the_table_of_one_process(processes, count, methods):
    found = together(processes, _attribute, None, "linear", methods, count=count)
    assert all(mine == found[0] for mine in found)  # to the bit
    assert_same(found[0], _attribute(Ranks(), None, "linear", methods))


@pytest.mark.parametrize("name", ["tied", "two_inputs"])
def test_other_models_from_the_curvature_of_one_process(processes, tmp_path, name):
    """Bases may turn where eigenvalues are equal, so the fit is handed over."""
    methods = ("ekfac", "pcg", "datainf") if name != "two_inputs" else ("ekfac", "pcg")
    alone = _attribute(Ranks(), tmp_path, name, methods)
    found = together(processes, _attribute, tmp_path, name, methods)
    assert found[0] == found[1]
    assert_same(found[0], alone)


def _few(ranks, place):
    task, train, queries = case("linear", count=5)
    options = {"method": "pcg", **SETTINGS["pcg"], "ranks": ranks}
    return whence.attribute(task, train, queries, **keywords_of(**options)).scores.tolist()


def test_more_ranks_than_examples(processes):
    found = together(processes, _few, None, count=3)
    assert found[0] == found[1] == found[2]
    assert_near(found[0], _few(Ranks(), None))


def _walked(ranks, place):
    """Examples whose gradients a process took in the scan, and in the products of the solver."""
    import whence.curvature.products as products
    import whence.score.exact as scan

    seen = {"scan": [], "products": []}
    part, product = scan._Scan.part, products._PRODUCTS["gauss_newton"]

    def scanned(self, examples, items):
        seen["scan"] += [examples[item].id for item in items]
        return part(self, examples, items)

    def multiplied(operator, examples, blocks):
        seen["products"] += [example.id for example in examples]
        return product(operator, examples, blocks)

    scan._Scan.part, products._PRODUCTS["gauss_newton"] = scanned, multiplied
    task, train, queries = case("linear")
    whence.attribute(
        task, train, queries, method=whence.settings.CG(iterations=1), runtime=whence.Runtime(quiet=True, ranks=ranks)
    )
    return seen, train.ids


def test_each_rank_walks_its_part_only(processes):
    (first, ids), (second, _) = together(processes, _walked, None)
    for part, times in (("scan", 1), ("products", 2)):  # a product for the step, and one that measures the residual
        assert sorted(first[part] + second[part]) == sorted([*ids] * times)
        assert abs(len(first[part]) - len(second[part])) <= times


def _self_influence(ranks, place):
    task, train, _ = case("linear")
    return whence.self_influence(task, train, runtime=whence.Runtime(quiet=True, ranks=ranks)).scores.tolist()


def test_self_influence(processes):
    first, second = together(processes, _self_influence, None)
    assert first == second
    assert_near(first, _self_influence(Ranks(), None))


# Solvers stay together


def _apart(ranks, place):
    """A process that rounds otherwise."""
    task, train, _ = case("linear")
    matrix = Curvature(task, plan_units(task), train.examples, ranks=ranks)
    blocks = [torch.ones_like(block) for block in matrix.zeros(2)]
    with ranks.connected():
        same = [block.tolist() for block in matrix.times(blocks)]
        blocks[0][1, 0, 0] += ranks.rank * 1e-15
        with pytest.raises(BadInput) as caught:
            matrix.times(blocks)
    return same, str(caught.value)


def test_vectors_that_differ_are_noticed_on_every_rank(processes):
    (first, said), (second, told) = together(processes, _apart, None)
    assert first == second and said == told
    assert "found vectors to be multiplied that are not the same on all 2 ranks; needed processes that compute alike" in said


def test_shares_are_each_item_once_and_balanced():
    chance = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 7):
        costs = (torch.rand(23, generator=chance) ** 3).tolist()
        shares = [Ranks(rank, count).balanced(costs) for rank in range(count)]
        assert sorted(place for share in shares for place in share) == list(range(23))
        loads = [sum(costs[place] for place in share) for share in shares]
        assert max(loads) <= max(max(costs), 4 / 3 * sum(costs) / count + max(costs) / 3)
    assert [Ranks(rank, 3).balanced([]) for rank in range(3)] == [[], [], []]


def _again_and_again(ranks, place):
    found = []
    for turn in range(12):
        with ranks.connected():
            found.append(ranks.gathered((turn, ranks.rank)))
    return found


def test_groups_one_after_the_other_do_not_meet(processes):
    """A group that looked where the former one met would find addresses at which nobody listens any more."""
    wanted = [[(turn, rank) for rank in range(3)] for turn in range(12)]
    assert together(processes, _again_and_again, None, count=3) == [wanted] * 3


# Layers over ranks


def _decomposed(ranks, folder):
    import whence.curvature.kfac as kfac

    sides, solve = [], kfac.eigenbasis

    def counted(moments, weights, dtype):
        sides.append(len(moments[0]))
        return solve(moments, weights, dtype)

    kfac.eigenbasis = counted
    torch.manual_seed(0)
    widths = [40, 30, 4, 4, 4, 4]  # one dear layer first, whose rank takes no other
    layers = [torch.nn.Linear(a, b, bias=False).double() for a, b in zip(widths, widths[1:], strict=False)]
    task = whence.Classification(torch.nn.Sequential(*layers))
    dataset = task.prepare([(torch.randn(40).double(), index % 4) for index in range(6)])
    fit_ekfac(task, plan_units(task), dataset, FitConfig(), quiet=True, ranks=ranks)
    return sorted(sides, reverse=True)


def test_layers_are_decomposed_once_and_by_what_they_cost(processes):
    first, second = together(processes, _decomposed, None)
    assert first == [40, 30] and second == [30, *[4] * 7]
    assert sorted([*first, *second]) == sorted(_decomposed(Ranks(), None))


# In parts, stopped, refused


def _in_parts(ranks, folder, kill=False):
    """Rows of a table one at a time, kept in the folder; the second rank may be killed when it comes to the second."""
    import whence.pipeline.exact.prepare  # the functions of the same names hide their modules

    exact, prepare = (sys.modules[f"whence.pipeline.exact.{name}"] for name in ("scorer", "prepare"))
    measure, in_chunks, made = prepare.measure, exact.in_chunks, []

    def tight(*arguments, **options):
        return replace(measure(*arguments, **options), rows_at_once=1)

    def told(ready, make, identity):
        def counted(rows):
            if kill and ranks.rank == 1 and rows.start == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(rows.start)
            return make(rows)

        return in_chunks(ready, counted, identity)

    prepare.measure, exact.in_chunks = tight, told
    task, train, queries = case("linear")
    table = whence.attribute(
        task,
        train,
        queries,
        method=whence.EKFAC(factors=folder),
        runtime=whence.Runtime(batch_positions=12, quiet=True, ranks=ranks),
    )
    return table.scores.tolist(), made


def test_rows_in_parts_go_on_after_a_rank_was_killed(processes, tmp_path):
    found = results(start(processes, _in_parts, tmp_path / "factors", True))
    assert isinstance(found[0], RankLost)
    (kept,) = (tmp_path / "factors").glob("rows-*")
    assert [path.name for path in kept.glob("*.safetensors")] == ["scores-0-1.safetensors"]
    (first, made), (second, _) = together(processes, _in_parts, tmp_path / "factors")
    assert made == [1, 2] and not kept.exists() and first == second
    task, train, queries = case("linear")
    alone = whence.attribute(
        task,
        train,
        queries,
        method=whence.EKFAC(factors=tmp_path / "factors"),
        runtime=whence.Runtime(batch_positions=12, quiet=True),
    ).scores
    assert_near(first, alone.tolist())


def test_torchrun_and_the_command_line(processes, tmp_path):
    job = tmp_path / "job.py"
    job.write_text(JOB)
    words = ["attribute", f"{job}:task", f"{job}:data", f"{job}:queries", "--method", "pcg", "--iterations", "3"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "whence", *words]
    done = subprocess.run([*command, "-o", str(tmp_path / "two")], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"] == 18  # printed once
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    ours, alone = (torch.from_numpy(_scores(tmp_path / name)) for name in ("two", "one"))
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))  # float32
    shutil.rmtree(tmp_path / "two")
    for option, why in (("--ensemble", "tables are added up in one folder"), ("--by-source", "a recorded run is walked")):
        more = [option, str(tmp_path / "all")] if option == "--ensemble" else ["--method", "unroll", "--run", "run", option]
        asked = [*words[:4], *more, "-o", str(tmp_path / "two")]
        with pytest.raises(AssertionError, match=f"found {option} for 2 processes; needed one process, since {why}"):
            together(processes, _command, tmp_path, asked)


def _scores(folder: Path):
    import numpy

    return numpy.load(folder / "scores.npy")

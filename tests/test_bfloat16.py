"""Weights of bfloat16 against float32 ones of the same values: what is summed is summed wider, and scores agree."""

from typing import Any

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET, keywords_of
from whence.capture import plan_units
from whence.curvature import ResolvedDamping, fit_ekfac, whiten
from whence.curvature.rows import gradient_pairs
from whence.data import Dataset
from whence.progress import meter
from whence.score import Batching, gradient_rows
from whence.settings import FitConfig

# Of a result: a few roundings to eight bits on the way through the network.
SHARE = 0.03


def pair(name):
    """The same task with weights of either type, examples and queries."""
    tasks = [zoo.make(name, 8)[0] for _ in range(2)]
    for task, dtype in zip(tasks, (torch.float32, torch.bfloat16), strict=True):
        task.model.to(torch.bfloat16).to(dtype)
    examples = zoo.make(name, 8)[1]
    return *tasks, examples, Dataset(examples.examples[:3])


def near(found, wanted, share=SHARE):
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert difference < share, float(difference)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_factors_are_wider_than_the_weights_and_near_those_of_float32(name):
    wide, narrow, examples, _ = pair(name)
    config = FitConfig(labels="dataset")
    fits = [fit_ekfac(task, plan_units(task), examples, config, max_positions=60, quiet=True) for task in (wide, narrow)]
    for wanted, found in zip(fits[0].blocks, fits[1].blocks, strict=True):
        assert found.values_OI.dtype == torch.float32
        assert {basis.dtype for basis in (found.outputs_OO, found.inputs_II) if isinstance(basis, torch.Tensor)} <= {
            torch.float32
        }
        near(found.values_OI.sum(), wanted.values_OI.sum())


@pytest.mark.parametrize("method", ["grad-dot-exact", "ekfac", "kfac"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scores(name, method):
    wide, narrow, examples, queries = pair(name)
    options: dict[str, Any] = {} if method == "grad-dot-exact" else {"labels": "dataset"}
    wanted, found = (
        whence.attribute(task, examples, queries, **keywords_of(method=method, **options)) for task in (wide, narrow)
    )
    near(found.scores, wanted.scores)


@pytest.mark.parametrize("method", ["logra", "lorif", "grad-dot"])
def test_stores(tmp_path, method):
    wide, narrow, examples, queries = pair("gpt2")
    tables = []
    for task, folder in ((wide, "wide"), (narrow, "narrow")):
        store = whence.build(task, examples, tmp_path / folder, config=whence.BuildConfig(method=method), runtime=QUIET)
        tables.append(whence.score_table(store, task, queries, runtime=QUIET).scores)
    near(tables[1], tables[0], 2 * SHARE)


def test_codes_are_whitened_in_float32():
    """Small directions are made large: what a rotation in eight bits leaves there is noise."""
    _, task, examples, _ = pair("gpt2")
    plan = plan_units(task)
    curvature = fit_ekfac(task, plan, examples, FitConfig(labels="dataset"), max_positions=60, quiet=True)
    whitened = whiten(curvature, ResolvedDamping(1e-3, None, ""), 10**9)
    with meter("", len(examples), quiet=True) as progress:
        found = gradient_rows(task, plan, whitened, examples.examples, batching=Batching(1000), progress=progress).units
    pairs = gradient_pairs(task, plan, examples.examples)
    for index, rows_B1U in enumerate(found):
        wanted = sum(whitened.bases.project(index, one.wide()) for one in pairs[index])
        assert rows_B1U.dtype == torch.float32
        near(rows_B1U.flatten(1), (wanted * whitened.weights[index]).flatten(1), 1e-5)

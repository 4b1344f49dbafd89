"""What the CPU computes, computed by a GPU; skipped where there is none. `tests/test_devices.py` finds mixed devices without one."""

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET, keywords_of, settings_of
from tests.test_devices import EXACT, STORED, stored
from tests.test_source import queries_of, train
from whence.capture import available_bytes
from whence.data import Dataset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def pair(name, dtype=torch.float64):
    """The same task twice, on the CPU and on the GPU, with its examples and two queries."""
    tasks = [zoo.make(name, 6) for _ in range(2)]
    for (task, _), device in zip(tasks, ("cpu", "cuda"), strict=True):
        task.model.to(device, dtype)
    (here, examples), (there, _) = tasks
    return here, there, examples, Dataset(examples.examples[:2])


def close(found, wanted, share=1e-8):
    found, wanted = found.scores.double(), wanted.scores.double()
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, wanted, rtol=0, atol=share * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["linear", "conv2d", "gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", STORED)
def test_stores_are_those_of_the_cpu(tmp_path, name, method):
    here, there, examples, queries = pair(name)
    wanted = stored(here, examples, queries, tmp_path / "here", method)
    # Codes of few bits round at a cliff.
    close(stored(there, examples, queries, tmp_path / "there", method), wanted, 1e-2 if method == "aligned" else 1e-5)


@pytest.mark.parametrize("name", ["linear", "conv2d", "gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", EXACT)
def test_exact_scores_are_those_of_the_cpu(name, method):
    here, there, examples, queries = pair(name)
    wanted = whence.attribute(here, examples, queries, method=method, runtime=QUIET)
    close(whence.attribute(there, examples, queries, method=method, runtime=QUIET), wanted, 1e-6)


@pytest.mark.parametrize(
    "options", [{"factors": "fit"}, {"largest_side": 4, "directions": 3}, {"query_rank": 2, "per_unit": True}]
)
def test_options_of_ekfac(tmp_path, options):
    here, there, examples, queries = pair("gpt2")
    tables = []
    for task in (here, there):
        some = {key: tmp_path / task.device.type if key == "factors" else value for key, value in options.items()}
        tables.append(whence.attribute(task, examples, queries, **keywords_of(**some)))
    close(tables[1], tables[0], 1e-6)


def test_bfloat16_weights(tmp_path):
    here, there, examples, queries = pair("gpt2", torch.bfloat16)
    wanted = whence.attribute(here, examples, queries, runtime=QUIET)
    close(whence.attribute(there, examples, queries, runtime=QUIET), wanted, 0.1)
    store = whence.build(there, examples, tmp_path, config=whence.BuildConfig(method="logra"), runtime=QUIET)
    assert torch.isfinite(whence.score_table(store, there, queries, runtime=QUIET).scores).all()


@pytest.mark.parametrize("method", ["unroll", "source", "tracin"])
def test_going_back_through_a_run(tmp_path, method):
    _, task, data, _ = train(tmp_path / "run", "adamw")
    queries = queries_of(task, 2)
    wanted = whence.attribute(task, data, queries, method=settings_of(method=method, run=tmp_path / "run"), runtime=QUIET)
    task.model.to("cuda")
    close(
        whence.attribute(task, data, queries, method=settings_of(method=method, run=tmp_path / "run"), runtime=QUIET),
        wanted,
        1e-6,
    )


def test_free_memory_is_that_of_the_device():
    assert 0 < available_bytes(torch.device("cuda")) <= torch.cuda.get_device_properties(0).total_memory

"""No path mixes tensors of the CPU with those of an accelerator: all of them on a pretend one, with the scores of the CPU."""

from typing import Any

import pytest
import torch

import whence
from tests import zoo
from tests.elsewhere import DEVICE, Elsewhere, elsewhere, moved
from tests.settings import QUIET, keywords_of, settings_of, small_rank
from tests.test_source import queries_of, train
from whence.curvature import ekfac
from whence.data import Dataset

STORED = ("aligned", "lorif", "logra-pca", "trak", "grass", "factgrass", "trackstar", "grad-cos")
EXACT = ("ekfac", "kfac", "pcg", "astra", "lissa", "nystroem", "arnoldi", "datainf", "grad-dot-exact")
PLANTED = "expected all tensors to be on the same device"


def placed(name="linear", count=6):
    """A task on the pretend accelerator; to be made inside `elsewhere`."""
    task, examples = zoo.make(name, count)
    moved(task.model)
    assert task.device == DEVICE
    return task, examples, Dataset(examples.examples[:2])


def same(found, wanted, rtol=1e-9):
    found, wanted = found.scores.double(), wanted.scores.double()
    assert not isinstance(found, Elsewhere)
    torch.testing.assert_close(found, wanted, rtol=0, atol=rtol * float(wanted.abs().max()))


def stored(task, examples, queries, folder, method):
    store = whence.build(
        task, examples, folder, config=whence.BuildConfig(method=method, **small_rank(method, joined=64)), runtime=QUIET
    )
    return whence.score_table(store, task, queries, runtime=QUIET)


def test_it_computes_what_the_cpu_does_and_refuses_both_at_once():
    with elsewhere() as device:
        values = torch.arange(6.0, device=device).view(2, 3)
        values[0, 1:] += 1
        found = torch.linalg.svdvals(values @ values.new_ones(3, 2)) + torch.tensor(2.0)
        assert isinstance(found, Elsewhere) and found.device == DEVICE
        assert values[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]] and float(values.cpu().sum()) == 17.0
        for planted in (
            lambda: values + torch.zeros(3),
            lambda: torch.zeros(3).add_(values[0]),
            lambda: values @ torch.zeros(3, 2),
            lambda: torch.cat([values, torch.zeros(1, 3)]),
            lambda: torch.zeros(3)[values[0].long()],
            lambda: torch.zeros(()).add_(values.sum()),
        ):
            with pytest.raises(RuntimeError, match=PLANTED):
                planted()
        with pytest.raises(RuntimeError, match="numpy"):
            values.numpy()
        with pytest.raises(RuntimeError, match="expected a generator on lazy:0"):
            torch.randn(3, generator=torch.Generator(), device=device)


def test_a_factory_without_a_device_is_found(monkeypatch):
    def without_device(self, index, like):
        unit = self.blocks[index].unit
        return self.sums.setdefault(index, torch.zeros(unit.outputs, unit.inputs, dtype=like.dtype))

    monkeypatch.setattr(ekfac._Sums, "_sum", without_device)
    with elsewhere(), pytest.raises(RuntimeError, match=PLANTED):
        task, examples, queries = placed()
        whence.attribute(task, examples, queries, runtime=QUIET)


@pytest.mark.parametrize("method", STORED)
def test_stores(tmp_path, method):
    task, examples = zoo.make("linear", 6)
    wanted = stored(task, examples, Dataset(examples.examples[:2]), tmp_path / "here", method)
    with elsewhere():
        same(stored(*placed(), tmp_path / "there", method), wanted)


@pytest.mark.parametrize("method", EXACT)
def test_exact_scores(method):
    task, examples = zoo.make("linear", 6)
    few: dict[str, Any] = {"iterations": 10} if method in ("astra", "lissa") else {}
    wanted = whence.attribute(task, examples, Dataset(examples.examples[:2]), **keywords_of(method=method, **few))
    with elsewhere():
        task, examples, queries = placed()
        same(whence.attribute(task, examples, queries, **keywords_of(method=method, **few)), wanted)


@pytest.mark.parametrize(
    ("name", "options"),
    [("conv2d", {"query_rank": 2, "per_unit": True}), ("gpt2", {"factors": "fit", "largest_side": 4, "directions": 3})],
)
def test_ekfac_of_a_language_model_and_of_images(tmp_path, name, options):
    options = {key: tmp_path / value if key == "factors" else value for key, value in options.items()}
    task, examples = zoo.make(name, 6)
    wanted = whence.attribute(task, examples, Dataset(examples.examples[:2]), **keywords_of(**options))
    with elsewhere():
        task, examples, queries = placed(name)
        # A fit that the CPU made is read from its folder.
        same(whence.attribute(task, examples, queries, **keywords_of(**options)), wanted)


@pytest.mark.parametrize("name", ["linear", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_store_with_its_rerank_and_self_influence(tmp_path, name):
    task, examples = zoo.make(name, 16)
    queries = Dataset(examples.examples[:2])
    whence.build(task, examples, tmp_path / "here", runtime=QUIET)
    wanted = whence.query(tmp_path / "here", task, queries, k=3, rerank=whence.Rerank(train=examples), runtime=QUIET)
    own = whence.self_influence(task, examples, runtime=QUIET)
    with elsewhere():
        task, examples, queries = placed(name, 16)
        whence.build(task, examples, tmp_path / "there", runtime=QUIET)
        found = whence.query(tmp_path / "there", task, queries, k=3, rerank=whence.Rerank(train=examples), runtime=QUIET)
        for some, others in zip(found.proponents, wanted.proponents, strict=True):
            assert [hit.id for hit in some] == [hit.id for hit in others]
            assert [hit.score for hit in some] == pytest.approx([hit.score for hit in others])
            assert some[0].token_scores == pytest.approx(others[0].token_scores)
        same(whence.self_influence(task, examples, runtime=QUIET), own)


@pytest.mark.parametrize("method", ["unroll", "source", "tracin"])
def test_going_back_through_a_run(tmp_path, method):
    _, task, data, _ = train(tmp_path / "run", "adamw")
    queries = queries_of(task, 2)
    wanted = whence.attribute(task, data, queries, method=settings_of(method=method, run=tmp_path / "run"), runtime=QUIET)
    with elsewhere():
        moved(task.model)
        same(
            whence.attribute(task, data, queries, method=settings_of(method=method, run=tmp_path / "run"), runtime=QUIET),
            wanted,
        )

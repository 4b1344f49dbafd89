"""Laws of every method of both roads: what must not change a score, or change it in a known way.

Axes: Q queries, N training examples.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import whence
from tests.settings import QUIET, settings_of, small_rank

EXACT = ("ekfac", "kfac", "pcg", "cg", "lissa", "astra", "nystroem", "arnoldi", "datainf", "grad-dot-exact")
STORED = tuple(sorted(whence.methods.METHODS))
COUNT = 7
few = settings(
    max_examples=3, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Sequences(nn.Module):
    """Means over the positions that a mask leaves; padding has to be nothing to it."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.out = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.to(dtype)

    def forward(self, inputs, attention_mask):
        weights = attention_mask[..., None].to(inputs.dtype)
        return self.out((self.norm(self.layer(inputs)).tanh() * weights).sum(1) / weights.sum(1))


def records_of(dtype=torch.float64, count=COUNT):
    generator = torch.Generator().manual_seed(1)
    lengths = [1 + (5 * number) % 4 for number in range(count)]
    return [
        {
            "id": f"r{number}", "inputs": torch.randn(length, 4, generator=generator, dtype=torch.float64).to(dtype),
            "attention_mask": torch.ones(length, dtype=torch.long), "label": number % 3,
        }
        for number, length in enumerate(lengths)
    ]  # fmt: skip


def scores(method, records, queries, folder, *, positions=64):
    """Scores (Q, N) in float64, of a store without codes of few bits, whose last step is a whole number."""
    task = whence.Classification(Sequences(records[0]["inputs"].dtype))
    if method in EXACT:
        options = {"iterations": 20} if method in ("lissa", "astra") else {}
        return whence.attribute(
            task,
            records,
            queries,
            method=settings_of(method=method, **options),
            runtime=whence.Runtime(batch_positions=positions, quiet=True),
        ).scores.double()
    options = small_rank(method, joined=32, side=4)
    dtype = "float32" if method == "aligned" else str(task.model.out.weight.dtype).removeprefix("torch.")
    store = whence.build(
        task,
        records,
        folder,
        config=whence.BuildConfig(method=method, dtype=dtype, batch_positions=positions, **options),
        runtime=QUIET,
    )
    return whence.score_table(store, task, queries, runtime=QUIET).scores.double()


def assert_close(found, wanted, share):
    assert float((found - wanted).abs().max()) <= share * float(wanted.abs().max())


def share_of(method, dtype):
    """How far two ways may be apart. Solvers stop at a residual, where rounding may take a step more or less."""
    if dtype == torch.float32:
        return 1e-3 if method in ("pcg", "cg", "lissa", "astra", "nystroem", "arnoldi", "datainf") else 2e-5
    return 1e-6 if method == "aligned" else 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", EXACT + STORED)
def test_the_batch_size_moves_nothing_but_rounding(method, dtype, tmp_path):
    """One example at a time, unpadded, as all at once, padded."""
    records = records_of(dtype)
    alone, together = (
        scores(method, records, records[:3], tmp_path / str(positions), positions=positions) for positions in (1, 64)
    )
    assert_close(alone, together, share_of(method, dtype))


@pytest.mark.parametrize("method", EXACT + STORED)
def test_rows_follow_their_examples(method, tmp_path_factory):
    records, folder = records_of(), tmp_path_factory.mktemp("laws")
    before = scores(method, records, records[:2], folder / "before")

    @few
    @given(st.permutations(range(COUNT)))
    def check(order):
        after = scores(method, [records[place] for place in order], records[:2], tmp_path_factory.mktemp("laws") / "after")
        if method in ("trak", "grass", "grass-selective", "factgrass", "logra", "lorif", "logra-pca", "trackstar", "aligned"):
            assert_close(after, before[:, list(order)], 1e-6)  # axes and factors of sums in another order
        else:
            assert_close(after, before[:, list(order)], 1e-9)

    check()


@pytest.mark.parametrize("method", EXACT + STORED)
def test_equal_examples_have_equal_scores(method, tmp_path):
    records = records_of()
    twice = [*records, *({**record, "id": f"{record['id']} again"} for record in records)]
    found = scores(method, twice, records[:2], tmp_path / "store")
    assert_close(found[:, :COUNT], found[:, COUNT:], 1e-9)


@few
@given(st.floats(0.01, 100))
@pytest.mark.parametrize("method, power", [("grad-dot-exact", 2), ("logra", 0), ("grad-dot", 2), ("grad-cos", 0)])
def test_a_loss_times_a_number(method, power, tmp_path_factory, times):
    """Products of two gradients go with its square; a Fisher of the same gradients takes that away, and so does a cosine."""

    def scored(factor):
        def loss(model, batch):
            return factor * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        torch.manual_seed(0)
        task = whence.Custom(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), loss)
        records = [(record["inputs"][0], record["label"]) for record in records_of()]
        if method in EXACT:
            return whence.attribute(task, records, records[:2], method=method, runtime=QUIET).scores.double()
        folder = tmp_path_factory.mktemp("laws") / "store"
        store = whence.build(
            task, records, folder, config=whence.BuildConfig(method=method, rank=8, dtype="float64"), runtime=QUIET
        )
        return whence.score_table(store, task, records[:2], runtime=QUIET).scores.double()

    assert_close(scored(times), times**power * scored(1.0), 1e-7)

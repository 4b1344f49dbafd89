"""Which size of code a build takes: what it is judged by is what queries see that nothing was learned from."""

from itertools import pairwise

import pytest
import torch

import whence
from tests.reference.aligned import held_back_agreement
from tests.settings import QUIET
from tests.test_fidelity import records, task
from whence.compress import TURNED, turn
from whence.curvature import Choosing, Code, code_axes
from whence.curvature.code_axes import held_back_trial
from whence.curvature.code_choice import rounded
from whence.store import read_fidelity

CHOICES = [Code(320, "int2", 2), Code(160, "int4", 4), Code(80, "int8", 8)]
PLACES = range(0, 320, 20)


def documents(decay, count=360, size=600):
    """Whose variance falls with a power of the coordinate."""
    made = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=made).double() * torch.arange(1, size + 1).double() ** -decay


def worth(rows, queries, choice):
    """Correlation of the scores that a store of these rows gives with exact ones, each by hand."""
    axes = code_axes([rows], [rows[:0]], Choosing([choice], 1 << 30, 0)).axes
    numbers = torch.cat([block for _, block in axes.blocks()]).double()
    coded, exact = (queries @ numbers) @ rounded(rows @ numbers, choice.bits).T, queries @ rows.T
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(coded, exact, strict=True)]).mean())


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.5])
def test_the_size_is_the_one_that_queries_prefer(decay):
    """Members in the place of queries prefer fewer numbers of more bits in the first two, and lose by it: what is theirs is rounded, too."""
    rows, queries = documents(decay).split([320, 40])
    values = {choice: worth(rows, queries, choice) for choice in CHOICES}
    best = max(values, key=lambda choice: values[choice])
    learned = code_axes([rows], [rows[:0]], Choosing(CHOICES, 1 << 30, 0), PLACES)
    # Sizes that queries find as good may change places.
    assert values[learned.code] > values[best] - 0.005
    assert learned.expected == pytest.approx(values[learned.code], abs=0.015) and learned.judges == 16


@pytest.mark.parametrize("choice", [*CHOICES, Code(20, "int8", 8)])
def test_held_back_documents_see_what_queries_do(choice):
    rows, queries = documents(0.1).split([320, 40])
    back = torch.zeros(320, dtype=torch.bool)
    back[list(PLACES)] = True
    trial = held_back_trial(rows @ rows.T, back.nonzero()[:, 0], (~back).nonzero()[:, 0], 0)
    assert trial.agreement(choice)[0] == pytest.approx(worth(rows, queries, choice), abs=0.03)


@pytest.mark.parametrize(
    "code", [Code(320, "float64", 64), Code(100, "float64", 64), Code(320, "int2", 2), Code(64, "int4", 4)]
)
def test_held_back_documents_are_judged_by_the_formula(code):
    """Without the Gram matrix: axes are singular vectors of the others' rows."""
    rows = documents(0.3, 320)
    back, taught = torch.arange(0, 320, 20), torch.tensor([row for row in range(320) if row % 20])
    value, _ = held_back_trial(rows @ rows.T, back, taught, 3).agreement(code)
    assert value == pytest.approx(held_back_agreement(rows, back, taught, code, seed=3), abs=1e-9)


def test_scores_of_stand_ins_know_that_axes_are_rounded():
    """Axes of one bit, and of 32."""
    rows = documents(0.3, 64, TURNED)
    queries = documents(0.3, 104, TURNED)[64:]
    stored = []
    for most_bytes in (1 << 30, 1 << 15):
        learned = code_axes([rows], [rows[:0]], Choosing([Code(48, "int8", 8)], most_bytes, 0), range(0, 64, 4))
        turned = (lambda part: part) if learned.axes.bits == 32 else lambda part: turn(part, 0, seed=0)
        numbers = torch.cat([block for _, block in learned.axes.blocks()]).double()
        coded = (turned(queries) @ numbers) @ rounded(turned(rows) @ numbers, 8).T
        real = torch.corrcoef(torch.stack([coded.flatten(), (queries @ rows.T).flatten()]))[0, 1]
        taught = [row for row in range(64) if row % 4]
        judged = learned.stand_ins[:, taught].flatten()
        trial = torch.corrcoef(torch.stack([judged, (rows[::4] @ rows[taught].T).flatten()]))[0, 1]
        assert float(trial) == pytest.approx(float(real), abs=0.03)
        stored.append(float(trial))
    assert stored[0] - stored[1] > 0.03


def test_answers_say_what_the_judge_was(tmp_path):
    asked = task()
    told = []
    for name, options in (("all", {}), ("some", {"axes_examples": 40}), ("one", {"axes_examples": 40, "rank": 20})):
        config = whence.BuildConfig(**({"bytes_per_example": 32} | options if "rank" not in options else options))
        store = whence.build(asked, records(120), tmp_path / name, config=config, runtime=QUIET)
        told.append("; ".join(whence.query(store, asked, records(1, seed=2), runtime=QUIET).notes))
    assert "sizes to 15 documents of the sample, coded by trial axes that the others taught" in told[0]
    assert "15 documents of the sample, coded by axes that others taught, stood in for queries" in told[0]
    assert "sizes to 80 documents that nothing was learned from" in told[1]
    assert "10 documents that nothing was learned from stood in for queries" in told[1]
    assert "sizes to" not in told[2]


def test_few_documents_choose_the_same_size_again(tmp_path):
    """One or none can be held back: whatever is chosen, nothing fails and it is the same each time."""
    asked = task()
    for count in (1, 2, 3, 9):
        stores = [
            whence.build(
                asked, records(count), tmp_path / f"{count}-{n}", config=whence.BuildConfig(bytes_per_example=32), runtime=QUIET
            )
            for n in range(2)
        ]
        first, second = (store.blueprint for store in stores)
        assert first.dtype == second.dtype and first.rank == second.rank <= count and not read_fidelity(stores[0])


def test_more_bytes_are_never_worth_less():
    """Of the sizes that fit in more bytes one is those that fit in fewer."""
    rows = documents(0.3, 320)
    values = [code_axes([rows], [rows[:0]], Choosing(CHOICES[:count], 1 << 30, 0), PLACES).expected for count in (1, 2, 3)]
    assert all(low <= high + 1e-12 for low, high in pairwise(values))

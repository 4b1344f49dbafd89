"""Sizes by retrained models: one factor, which a bank with a known answer gives back."""

import pytest
import torch

from whence.errors import BadInput
from whence.evaluate import Bank, calibrated, evaluate, load_table, random_subsets, save_bank, save_table
from whence.records import ScoreTable


def problem(slope, subsets=8, noise=0.01):
    """A table, and a bank in which a score is worth `slope`."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    ids = (tuple("abc"), tuple(map(str, range(20))))
    parts = {"one": 0.25 * scores, "two": 0.75 * scores}
    table = ScoreTable(scores, *ids, "nats", "mine", parts=parts, tokens={"3": torch.ones(3, 4)})
    masks = random_subsets(20, subsets)
    values = slope * masks.double() @ scores.T + 5 + noise * torch.randn(subsets, 3, generator=generator, dtype=torch.float64)
    return table, Bank(masks, values[:, None], (0,), ids[1], ids[0], "bits", None, {})


@pytest.mark.parametrize("slope", [0.14, 5.7])
def test_scores_are_worth_what_they_say_afterwards(slope):
    table, bank = problem(slope)
    found = calibrated(table, bank)
    torch.testing.assert_close(found.scores, slope * table.scores, rtol=0.05, atol=0)
    ratio = float(found.scores[0, 0] / table.scores[0, 0])
    torch.testing.assert_close(sum(found.parts.values()), found.scores)
    assert torch.equal(found.tokens["3"], torch.ones(3, 4) * ratio)
    assert found.unit == "bits" and found.method == "mine, sizes by 8 retrained models"
    assert found.notes[-1].startswith("sizes: times") and "3 queries" in found.notes[-1]
    before, after = (evaluate([each], bank).rows[0] for each in (table, found))
    assert before.lds.interval == after.lds.interval
    assert after.calibration is not None and after.calibration.slope.mean == pytest.approx(1)


def test_a_bank_of_some_of_the_queries_is_enough():
    table, bank = problem(0.5)
    found = calibrated(table, bank.of_queries(["b"]))
    torch.testing.assert_close(found.scores, 0.5 * table.scores, rtol=0.05, atol=0)


def test_where_no_size_follows_it_is_told(tmp_path):
    table, bank = problem(0.0, noise=1.0)
    with pytest.raises(BadInput, match="needed one that is above 0"):
        calibrated(table, bank)
    with pytest.raises(BadInput, match="of other queries than"):
        calibrated(ScoreTable(table.scores, tuple("xyz"), table.train_ids, "", "mine"), bank)


def test_on_the_command_line(run, tmp_path):
    table, bank = problem(2.0)
    save_table(table, tmp_path / "table")
    save_bank(bank, tmp_path / "bank")
    run("evaluate", tmp_path / "bank", tmp_path / "table", "--calibrate", tmp_path / "sized")
    found = load_table(tmp_path / "sized")
    torch.testing.assert_close(found.scores.double(), 2 * table.scores, rtol=0.05, atol=1e-6)
    assert "sizes: times" in found.notes[-1]
    told = run("evaluate", tmp_path / "bank", *[tmp_path / "table"] * 2, "--calibrate", tmp_path / "again", status=2)
    assert "--calibrate for 2 tables" in told and not (tmp_path / "again").exists()

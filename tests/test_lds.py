"""LDS, its interval, its ceiling, and the split between tuning and judging."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from whence.errors import BadInput
from whence.evaluate import (
    Bank,
    Judge,
    evaluate,
    held_out,
    judged_queries,
    load_table,
    noise_ceiling,
    predicted,
    random_subsets,
    save_bank,
    save_table,
    tune,
)
from whence.records import ScoreTable

NUM_TRAIN, NUM_QUERIES, NUM_SUBSETS = 60, 24, 80


def truth(seed=0):
    return torch.randn(NUM_QUERIES, NUM_TRAIN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(scores, method="m", **facts):
    queries = tuple(f"q{n}" for n in range(NUM_QUERIES))
    return ScoreTable(scores, queries, tuple(f"t{n}" for n in range(NUM_TRAIN)), "nats", method, **facts)


def bank(scores=None, *, noise=0.0, seeds=3, seed=5):
    scores = truth() if scores is None else scores
    masks = random_subsets(NUM_TRAIN, NUM_SUBSETS, seed=seed)
    sums = masks.double() @ scores.T
    generator = torch.Generator().manual_seed(seed)
    errors = torch.randn(NUM_SUBSETS, seeds, NUM_QUERIES, generator=generator, dtype=torch.float64)
    values = 3.0 + sums[:, None] + noise * errors
    ids = table(scores)
    return Bank(masks, values, tuple(range(seeds)), ids.train_ids, ids.query_ids, "nats")


def test_a_true_additive_score_gets_one():
    found = Judge(bank()).lds(table(truth()))
    assert found.interval.mean == pytest.approx(1.0) and found.interval.low == pytest.approx(1.0)
    assert found.same_seed == pytest.approx(1.0) and found.share == pytest.approx(1.0)
    assert Judge(bank()).lds(table(-truth())).interval.mean == pytest.approx(-1.0)


@pytest.mark.parametrize("seed", range(5))
def test_random_scores_get_an_interval_that_holds_zero(seed):
    interval = Judge(bank(noise=3.0)).lds(table(truth(100 + seed))).interval
    assert interval.low < 0 < interval.high
    assert interval.high - interval.low < 0.3


def test_monotone_maps_of_the_outcome_change_nothing():
    plain = bank(noise=4.0)
    bent = replace(plain, values_MSQ=plain.values_MSQ.sinh())
    scored = table(truth() + 0.5 * truth(1))
    one_seed = [replace(found, values_MSQ=found.values_MSQ[:, :1], seeds=(0,)) for found in (plain, bent)]
    first, second = (Judge(found).lds(scored) for found in one_seed)
    torch.testing.assert_close(first.per_query_Q, second.per_query_Q)
    assert first.interval == second.interval
    assert noise_ceiling(bent).seed_to_seed == pytest.approx(noise_ceiling(plain).seed_to_seed)


def test_lds_is_the_mean_of_scipys_correlations_whatever_the_order_of_ids():
    judge, scored = Judge(bank(noise=5.0)), table(truth() + truth(2))
    sums = judge.bank.masks_MN.double() @ scored.scores.T
    expected = [spearmanr(sums[:, q], judge.bank.actual_MQ[:, q]).statistic for q in range(NUM_QUERIES)]
    found = judge.lds(scored)
    torch.testing.assert_close(found.per_query_Q, torch.tensor(expected, dtype=torch.float64))
    rows, columns = torch.randperm(NUM_QUERIES), torch.randperm(NUM_TRAIN)
    mixed = replace(
        scored,
        scores=scored.scores[rows][:, columns],
        query_ids=tuple(scored.query_ids[row] for row in rows),
        train_ids=tuple(scored.train_ids[column] for column in columns),
    )
    torch.testing.assert_close(judge.lds(mixed).per_query_Q, found.per_query_Q)


def test_the_interval_covers_what_other_subsets_and_queries_would_give():
    """The bootstrap's width against the spread of LDS over banks drawn anew, both sources of chance included."""
    found = []
    widths = []
    for seed in range(40):
        judge = Judge(bank(truth(seed), noise=6.0, seed=seed), draws=300)
        result = judge.lds(table(truth(seed) + 0.7 * truth(1000 + seed)))
        found.append(result.interval.mean)
        widths.append(result.interval.high - result.interval.low)
    spread = 2 * 1.96 * torch.tensor(found).std().item()
    assert 0.8 * spread < sum(widths) / len(widths) < 1.8 * spread


def test_the_bootstrap_on_fixed_ranks_is_close_to_ranking_every_draw_anew():
    judge = Judge(bank(noise=6.0), draws=200)
    scored = table(truth() + truth(3))
    fast = judge.lds(scored).draws_D
    predictions, actual = predicted(scored, judge.bank), judge.bank.actual_MQ
    slow = []
    for weights, queries in zip(judge._weights_DM[:40], judge._queries_DQ[:40], strict=True):
        rows = torch.repeat_interleave(torch.arange(NUM_SUBSETS), weights.long())
        values = [spearmanr(predictions[rows, q], actual[rows, q]).statistic for q in queries.tolist()]
        slow.append(sum(values) / len(values))
    assert (fast[:40] - torch.tensor(slow, dtype=torch.float64)).abs().max() < 0.02


@pytest.mark.parametrize("noise", [1.0, 5.0, 12.0])
def test_a_perfect_prediction_reaches_the_ceiling(noise):
    reached = Judge(bank(noise=noise)).lds(table(truth()))
    assert reached.ceiling.reachable == pytest.approx(reached.interval.mean, abs=0.04)
    assert reached.ceiling.seed_to_seed < reached.ceiling.reachable
    assert reached.share == pytest.approx(1.0, abs=0.06)


def test_one_seed_has_no_ceiling():
    found = Judge(bank(noise=1.0, seeds=1)).lds(table(truth()))
    assert math.isnan(found.ceiling.reachable) and math.isnan(found.share)
    assert found.same_seed == pytest.approx(found.interval.mean)
    assert found.to_dict()["ceiling"] is None


def test_differences_are_paired():
    judge = Judge(bank(noise=6.0))
    better, worse = judge.lds(table(truth())), judge.lds(table(truth() + 0.3 * truth(4)))
    gap = better.minus(worse)
    assert 0 < gap.low < gap.mean < gap.high
    assert gap.high - gap.low < better.interval.high - better.interval.low


def test_missing_ids_and_small_banks_are_refused():
    scored = table(truth())
    with pytest.raises(BadInput, match="without 1 of the bank's 60 training examples, such as 't59'"):
        predicted(replace(scored, scores=scored.scores[:, :59], train_ids=scored.train_ids[:59]), bank())
    with pytest.raises(BadInput, match="24 queries, such as 'q0'"):
        predicted(replace(scored, query_ids=tuple(f"x{n}" for n in range(NUM_QUERIES))), bank())
    whole = bank()
    with pytest.raises(BadInput, match="a bank of 2 subsets"):
        Judge(replace(whole, masks_MN=whole.masks_MN[:2], values_MSQ=whole.values_MSQ[:2]))


def test_tuning_picks_on_one_half_and_is_refused_on_it():
    whole = bank(noise=4.0)
    candidates = {f"{weight}": table(truth() + weight * truth(6)) for weight in (0.1, 1.0, 3.0)}
    tuned = tune(candidates, whole)
    tuning, judging = held_out(whole.query_ids)
    assert tuned.label == "0.1" and tuned.table.tuned_on == tuning
    assert set(tuning) | set(judging) == set(whole.query_ids) and not set(tuning) & set(judging)
    with pytest.raises(BadInput, match=f"{len(tuning)} queries that 'm' was tuned on"):
        Judge(whole).lds(tuned.table)
    assert Judge(whole.of_queries(judging)).lds(tuned.table).interval.mean > 0.8
    assert judged_queries([tuned.table], whole) == judging
    assert held_out(["q3", "q1"])[0] == tuple(query for query in ("q3", "q1") if query in tuning)
    with pytest.raises(BadInput, match="0 settings"):
        tune({}, whole)


def test_the_choice_sees_only_the_tuning_half():
    """A table that is right on the judging half alone must not be chosen."""
    whole = bank()
    tuning, _ = held_out(whole.query_ids)
    is_tuning = torch.tensor([query in tuning for query in whole.query_ids])
    cheat = torch.where(is_tuning[:, None], truth(7), truth())
    honest = torch.where(is_tuning[:, None], truth(), truth(7))
    assert tune({"cheat": table(cheat), "honest": table(honest)}, whole).label == "honest"


def test_an_evaluation_ranks_and_says_what_it_stands_on():
    whole = bank(noise=4.0)
    tables = [table(truth(9), "random"), table(2 * truth(), "true", bytes_per_example=16, seconds=0.5)]
    found = evaluate(tables, whole)
    assert [row.method for row in found.rows] == ["true", "random"]
    assert found.rows[0].behind is None and found.rows[1].behind.low > 0.5
    assert found.rows[0].calibration.slope.mean == pytest.approx(0.5, abs=0.05)
    assert "80 subsets with 50% of 60 examples, 3 seeds each, 24 queries" in found.summary()
    assert len(found.cells()[0]) == len(found.header)
    json.dumps(found.to_dict(), allow_nan=False)


def test_all_rows_stand_on_queries_that_none_was_tuned_on():
    whole = bank(noise=4.0)
    tuned = tune({"a": table(truth(), "tuned")}, whole).table
    found = evaluate([tuned, table(truth(9), "random")], whole)
    assert found.query_ids == held_out(whole.query_ids)[1]
    assert [len(row.lds.per_query_Q) for row in found.rows] == [len(found.query_ids)] * 2
    assert found.cells()[0][0] == "tuned (tuned)"
    with pytest.raises(BadInput, match="1 names more than once"):
        evaluate([table(truth(), "same"), table(truth(1), "same")], whole)


def test_tables_survive_the_disk(tmp_path):
    scored = table(truth().float(), "lorif", tuned_on=("q1",), bytes_per_example=12.5, seconds=3.0)
    save_table(scored, tmp_path)
    found = load_table(tmp_path)
    assert torch.equal(found.scores, scored.scores)
    assert replace(found, scores=scored.scores) == scored
    (tmp_path / "table.json").write_text(json.dumps({"query_ids": ["a"], "train_ids": ["b"], "method": "other"}))
    with pytest.raises(BadInput, match=r"scores \(24, 60\) for 1 queries and 1 examples"):
        load_table(tmp_path)
    with pytest.raises(BadInput, match="which is no score table"):
        load_table(tmp_path / "nowhere")


def test_the_command_line_prints_json_and_a_page(tmp_path, capsys):
    from whence.cli import main

    save_bank(bank(noise=4.0), tmp_path / "bank")
    save_table(table(truth().float(), "true", bytes_per_example=8, seconds=1.0), tmp_path / "true")
    save_table(table(truth(9).float(), "<random>"), tmp_path / "random")
    words = ["evaluate", str(tmp_path / "bank"), str(tmp_path / "true"), str(tmp_path / "random")]
    page, result = tmp_path / "page.html", tmp_path / "result.json"
    assert main([*words, "--json", "--html", str(page), "-o", str(result)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in printed["rows"]] == ["true", "<random>"] and json.loads(result.read_text()) == printed
    content = page.read_text()
    assert "Quality per byte" in content and "noise ceiling" in content and "<random>" not in content
    assert main(words) == 0
    assert "a perfect prediction would reach" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "nowhere"), str(tmp_path / "true")]) == 2


def test_a_table_of_more_examples_is_of_other_data():
    wide = table(truth())
    more = replace(wide, scores=torch.cat([wide.scores, wide.scores[:, :1]], 1), train_ids=(*wide.train_ids, "t60"))
    with pytest.raises(BadInput, match="scores of 61 training examples for a bank of 60"):
        predicted(more, bank())

"""A small fixed sample of `make fuzz`, and what it would say of answers that are wrong."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import whence
from tests.fuzz.case import Case, draw, smaller
from tests.fuzz.run import main
from tests.fuzz.verdict import judge, shrunk, signature

DRAWS = range(120)
STRETCH = 20
# The sample is about models, not about how many examples there are: 255 to 261 of them take as long as all else.
FEW = 9


def accepted(case: Case) -> None:
    verdict = judge(case)
    again = f"python -m tests.fuzz.run --replay '{case}'"
    assert verdict.outcome != "finding", f"{verdict.detail}\n{verdict.trace}\nsee it again: {again}"


@pytest.mark.parametrize("start", DRAWS[::STRETCH])
def test_answers_are_those_of_autograd_one_example_at_a_time_or_refused_for_a_true_cause(start):
    for number in range(start, start + STRETCH):
        case = draw(number)
        accepted(dataclasses.replace(case, count=min(case.count, FEW)))


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.integers(0, 1 << 30), st.randoms(use_true_random=False))
def test_the_corners_that_hypothesis_likes(seed, source):
    case = draw(seed, source)
    accepted(dataclasses.replace(case, count=min(case.count, FEW)))


def test_a_draw_is_made_again_from_its_number_or_its_text():
    for number in range(50):
        assert draw(number) == draw(number) == Case.from_text(str(draw(number)))
        assert all(other != draw(number) for other in smaller(draw(number)))


def _slightly_wrong(table):
    return dataclasses.replace(table, scores=table.scores + 1e-5 * table.scores.abs().max())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_slightly_wrong, "wrong scores"),
        (lambda table: dataclasses.replace(table, scores=table.scores * torch.nan), "scores that are not finite"),
        (lambda table: dataclasses.replace(table, scores=table.scores[:, 1:]), "scores of shape"),
        (lambda table: table.nothing, "traceback: AttributeError"),
    ],
)
def test_a_wrong_answer_is_found_and_made_small(monkeypatch, capsys, change, found):
    attribute = whence.attribute
    monkeypatch.setattr(whence, "attribute", lambda *args, **named: change(attribute(*args, **named)), raising=False)
    case = Case(seed=1, kind="sequences", parts=("linear", "layer norm"), count=5, training=True)
    verdict = judge(case)
    assert (verdict.outcome, verdict.detail[: len(found)]) == ("finding", found) or found in verdict.detail
    assert shrunk(case, verdict) in (Case(seed=1), Case(seed=1, kind="sequences"), Case(seed=1, count=1))
    assert main(["--replay", str(case)]) == 1
    assert found in capsys.readouterr().out


def test_a_refusal_has_to_be_true(monkeypatch):
    def refused(*args, **named):
        raise whence.errors.BadInput(found="a loss that depends on the other examples of its batch", do="look for statistics")

    monkeypatch.setattr(whence, "attribute", refused, raising=False)
    assert judge(Case(seed=1, parts=("linear",))).outcome == "finding"
    assert judge(Case(seed=1, parts=("mean over the batch",))).outcome == "refused"


def test_messages_are_counted_without_their_names_and_numbers():
    one = signature(
        "found a captured gradient of 'a.weight' that differs ([1.0, 2e-3] against [0.5, 1.0]); pass functional=['a']"
    )
    assert one == signature("found a captured gradient of 'b' that differs ([3.0] against [-1.0]); pass functional=['b', 'c']")

"""Passes without logits against passes with them, and against plain autograd, in float64."""

import pytest
import torch

import whence
from tests.reference.gradients import unit_gradients
from tests.settings import keywords_of
from tests.zoo import make
from whence.capture import capture, plan_units, separate_head
from whence.curvature import kfac as kfac_room
from whence.curvature.labels import choose_labels, numbered, objectives
from whence.score import exact as exact_room

BLOCKS = {"gpt2": ["*.h.*"], "llama": ["*.layers.*"]}


def of_blocks(name, count=5):
    task, dataset = make(name, count)
    return whence.CausalLM(task.model, tokenizer=None, track=BLOCKS[name]), dataset


def captured(task, plan, examples, objective):
    found = [torch.zeros(len(examples), unit.outputs, unit.inputs).double() for unit in plan.units]

    def consume(index, pair):
        found[index] += pair.gradient()

    capture(task, plan, task.collate(examples), consume, num_examples=len(examples), objective=objective)
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_the_loss(name):
    task, dataset = of_blocks(name)
    plan = plan_units(task)
    head = separate_head(task, plan, dataset.examples)
    found = captured(task, plan, dataset.examples, head.loss)
    for number, example in enumerate(dataset.examples):
        task.model.zero_grad()
        task.loss(task.model.eval(), task.collate([example])).sum().backward()
        rows = {key: value.grad[None] for key, value in task.model.named_parameters() if key in task.tracked}
        for index, (gradient,) in enumerate(unit_gradients(task, plan, rows)):
            torch.testing.assert_close(found[index][number], gradient, rtol=1e-6, atol=1e-9)  # llama's norms are float32


@pytest.mark.parametrize("labels", ["sampled", "dataset"])
@pytest.mark.parametrize("name", BLOCKS)
def test_objectives_have_the_same_gradients_with_and_without_logits(name, labels):
    task, dataset = of_blocks(name)
    plan = plan_units(task)
    samples = 2 if labels == "sampled" else None
    rule = choose_labels(task, dataset.examples, labels, samples=samples, seed=3)
    found = []
    for head in (None, separate_head(task, plan, dataset.examples)):
        batch = numbered(task.collate(dataset.examples), len(dataset), task.device)
        for objective in objectives(task, rule, dataset.examples, stage="values", head=head):
            rows = [torch.zeros(len(dataset), unit.outputs, unit.inputs).double() for unit in plan.units]

            def consume(index, pair, rows=rows):
                rows[index] += pair.gradient()

            capture(task, plan, batch, consume, num_examples=len(dataset), objective=objective)
            found.append(rows)
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


# Labels drawn anew have gradients in the null space of factors from few positions, where bases are chance: the identity there.
@pytest.mark.parametrize(("labels", "largest_side"), [("sampled", 1), ("dataset", 1024)])
@pytest.mark.parametrize("name", BLOCKS)
def test_scores_are_the_same(name, labels, largest_side, monkeypatch):
    task, dataset = of_blocks(name, 9)
    train, queries = whence.data.Dataset(dataset.examples[:6]), whence.data.Dataset(dataset.examples[6:])
    options = {"labels": labels, "largest_side": largest_side, "batch_positions": 30}
    found = whence.attribute(task, train, queries, **keywords_of(**options)).scores
    for room in (kfac_room, exact_room):
        monkeypatch.setattr(room, "separate_head", lambda *_: None)
    expected = whence.attribute(task, train, queries, **keywords_of(**options)).scores
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


def test_a_head_that_is_attributed_or_not_alone_at_the_end_is_not_left_out():
    task, dataset = make("gpt2")  # all parameters
    assert separate_head(task, plan_units(task), dataset.examples) is None
    task, dataset = make("linear")
    assert separate_head(task, plan_units(task), dataset.examples) is None
    task, dataset = of_blocks("llama")
    forward = task.model.forward

    def capped(**inputs):
        found = forward(**inputs)
        found.logits = torch.tanh(found.logits)
        return found

    task.model.forward = capped
    assert separate_head(task, plan_units(task), dataset.examples) is None


def test_the_head_is_put_back_when_the_model_fails():
    task, dataset = of_blocks("llama")
    head = separate_head(task, plan_units(task), dataset.examples)
    with pytest.raises(TypeError):
        head.rows(lambda **_: 1 + "", task.collate(dataset.examples))
    assert "forward" not in head.module.__dict__
    logits = task.model(**{key: task.collate(dataset.examples)[key] for key in ("input_ids", "attention_mask")}).logits
    assert logits.shape[-1] == 30

"""Choosing among a step's candidates: scores are inner products of plain autograd gradients, and steps are on what is kept."""

import pytest
import torch
from torch import nn

import whence
from tests.reference.gradients import dense_gradients
from tests.test_record import collate, documents, hf_trainer
from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.select import TrainingSelection, select_trainer
from whence.settings import SelectInTraining

COUNT = 24


def records(count=COUNT):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return [(row, int(row[0] > 0)) for row in inputs]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()


def step(model, optimizer, rows):
    optimizer.zero_grad()
    inputs, labels = torch.stack([row for row, _ in rows]), torch.tensor([label for _, label in rows])
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def by_hand(task, train, validation, gains):
    """One example at a time: -(P mean grad m)^T grad loss."""
    losses, wanted = dense_gradients(task, train.examples), dense_gradients(task, validation.examples, "measurement")
    parts = [
        (losses[name] * (gains[name] * wanted[name].mean(0))).flatten(1).sum(1) for name, _ in task.model.named_parameters()
    ]
    return -torch.stack(parts).sum(0)


def optimizers(model):
    weights, biases = [p for p in model.parameters() if p.ndim == 2], [p for p in model.parameters() if p.ndim == 1]
    return {
        "sgd": torch.optim.SGD(model.parameters(), lr=0.1),
        "momentum": torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.02}], lr=0.1, momentum=0.9),
        "adamw": torch.optim.AdamW([{"params": weights}, {"params": biases, "lr": 0.03}], lr=0.01),
    }


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_scores_are_inner_products_of_gradients_through_what_the_optimizer_divides_by(name):
    model, rows = network(), records()
    optimizer = optimizers(model)[name]
    task = whence.Classification(model)
    train, validation = task.prepare(rows[:16]), task.prepare(rows[16:])
    selection = TrainingSelection(task, train, validation, optimizer, config=SelectInTraining(keep=5, every=1))
    for _ in range(3):
        gains = {}
        for group in optimizer.param_groups:
            rate = group["lr"] / max(other["lr"] for other in optimizer.param_groups)
            for key, value in model.named_parameters():
                if any(value is one for one in group["params"]):
                    state = optimizer.state.get(value, {})
                    corrected = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"])) if "exp_avg_sq" in state else None
                    gains[key] = rate * (1.0 if corrected is None else 1 / (corrected.sqrt() + 1e-8))
        chosen = selection.choose(range(16))
        expected = by_hand(task, train, validation, gains)
        torch.testing.assert_close(chosen.scores_B, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert set(chosen.rows) == set(expected.argsort(descending=True)[:5].tolist()) and list(chosen.rows) == sorted(
            chosen.rows
        )
        assert chosen.ids == tuple(str(row) for row in chosen.rows) and chosen.weights_B.sum() == 5
        assert model.training
        step(model, optimizer, [rows[row] for row in chosen.rows])


def test_a_score_is_what_a_small_step_does_to_the_validation_set():
    model, rows = network(), records()
    task = whence.Classification(model.eval())
    selection = TrainingSelection(task, rows[:16], rows[16:], config=SelectInTraining(plain=True))
    scores_B = selection.choose(range(16)).scores_B
    inputs, labels = torch.stack([row for row, _ in rows[16:]]), torch.tensor([label for _, label in rows[16:]])
    before = [value.detach().clone() for value in model.parameters()]
    for row, score in enumerate(scores_B.tolist()):
        losses = []
        for backwards in (True, False):
            for value, kept in zip(model.parameters(), before, strict=True):
                value.data.copy_(kept)
            step(model, torch.optim.SGD(model.parameters(), lr=1e-5, maximize=backwards), [rows[row]])
            losses.append(nn.functional.cross_entropy(model(inputs), labels).item())
        for value, kept in zip(model.parameters(), before, strict=True):
            value.data.copy_(kept)
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(score, rel=1e-4, abs=1e-6)


def test_weights_and_lengths_and_when_the_validation_gradient_is_taken():
    model, rows = network(), records()
    task = whence.Classification(model)
    soft = TrainingSelection(task, rows[:16], rows[16:], config=SelectInTraining(plain=True, reweight=True, every=2))
    first = soft.choose(range(16))
    kept = first.weights_B[list(first.rows)]
    assert (
        float(kept.mean()) == pytest.approx(1)
        and len(set(kept.tolist())) > 2
        and first.weights_B.argmax() == first.scores_B.argmax()
    )
    with torch.no_grad():
        model[0].weight.mul_(2)
    stale, fresh = soft.choose([3]).scores_B, soft.choose([3]).scores_B
    new = TrainingSelection(task, rows[:16], rows[16:], config=SelectInTraining(plain=True)).choose([3]).scores_B
    torch.testing.assert_close(fresh, new)
    assert float(stale) != pytest.approx(float(new))
    for single in (5, "5", torch.tensor(5)):
        with pytest.raises(BadInput, match="found '5' as the ids of a batch; needed several"):
            soft.choose(single)
    with pytest.raises(BadInput, match="'99', not in the training data"):
        soft.choose([99])
    with pytest.raises(BadInput, match="found a selection without the training's optimizer"):
        TrainingSelection(task, rows[:16], rows[16:]).choose([1])
    for other in (torch.optim.AdamW(network().parameters()), "adamw"):  # of a copy, whose scores would all be 0
        with pytest.raises(BadInput, match="that steps no parameter of the task's model"):
            TrainingSelection(task, rows[:16], rows[16:], other).choose([1])
    with pytest.raises(BadInput, match="where a task belongs"):
        TrainingSelection(model, rows[:16], rows[16:])
    with pytest.raises(BadInput, match="found keep='9 tokens'"):
        TrainingSelection(task, rows[:16], rows[16:], config=SelectInTraining(keep="9 tokens"))
    muon = torch.optim.Muon([model[0].weight], lr=0.1)
    step(model, muon, rows[:4])
    with pytest.raises(Unsupported, match="found Muon, which multiplies the gradient of '0.weight' with no diagonal"):
        TrainingSelection(task, rows[:16], rows[16:], muon).choose([1])


def task_of(trainer):
    task = whence.CausalLM(trainer.model, tokenizer=None)
    lists = [
        {"id": one["id"], "input_ids": one["input_ids"].tolist(), "labels": one["input_ids"].tolist()} for one in documents()
    ]
    return task, task.prepare(lists)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_steps_on_what_is_kept(tmp_path):
    """Recorded too: the steps of the record, made again by hand with their weights, end where the Trainer did."""
    options = {
        "optim": "sgd", "weight_decay": 0.0, "learning_rate": 0.1, "gradient_accumulation_steps": 1, "max_grad_norm": 0.0,
        "per_device_train_batch_size": 7, "num_train_epochs": 2, "lr_scheduler_type": "constant",
    }  # fmt: skip
    trainer = hf_trainer(tmp_path, **options)
    task, train = task_of(trainer)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen = []
    selection = TrainingSelection(task, train, Dataset(train.examples[:3]), config=SelectInTraining(keep=3))
    choose = selection.choose
    selection.choose = lambda ids: seen.append(choose(ids)) or seen[-1]
    whence.runs.record_trainer(trainer, tmp_path / "run")
    select_trainer(trainer, selection)
    trainer.train()
    run = whence.runs.open_run(tmp_path / "run")
    assert run.steps == len(seen) == 4 and all(len(chosen.scores_B) == 7 for chosen in seen)
    assert [[run.ids[one] for one in members] for members in run.log.members] == [list(chosen.ids) for chosen in seen]
    end = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(start)
    by_id = {one["id"]: one for one in documents()}
    for chosen in seen:
        trainer.model.zero_grad()
        trainer.model(**collate([{"input_ids": by_id[name]["input_ids"]} for name in chosen.ids])).loss.backward()
        with torch.no_grad():
            for value in trainer.model.parameters():
                value -= 0.1 * value.grad
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, end[name], rtol=1e-4, atol=1e-5)
    trainer.model.load_state_dict(end)
    table = whence.attribute(task, train, train, method=whence.settings.TracIn(run=run.folder))
    assert bool(torch.isfinite(table.scores).all()) and not any("differs" in note for note in table.notes)


@pytest.mark.filterwarnings("ignore")
def test_trainers_that_nothing_can_be_chosen_for(tmp_path):
    trainer = hf_trainer(tmp_path, gradient_accumulation_steps=2)
    task, train = task_of(trainer)
    with pytest.raises(Unsupported, match="found a Trainer with gradient_accumulation_steps=2"):
        select_trainer(trainer, TrainingSelection(task, train, train))
    trainer = hf_trainer(tmp_path, gradient_accumulation_steps=1)
    with pytest.raises(BadInput, match="found a Trainer of another model than the selection's"):
        select_trainer(trainer, TrainingSelection(task, train, train))
    task, train = task_of(trainer)
    with pytest.raises(Unsupported, match="found weights for the examples of a Trainer"):
        select_trainer(trainer, TrainingSelection(task, train, train, config=SelectInTraining(reweight=True)))
    with pytest.raises(BadInput, match="'0' of the Trainer that the selection does not have"):
        select_trainer(trainer, TrainingSelection(task, train, train), id_field="no such field")
    trainer = hf_trainer(tmp_path, gradient_accumulation_steps=1)
    task, train = task_of(trainer)
    select_trainer(trainer, TrainingSelection(task, train, train))
    with pytest.raises(Unsupported, match="ask for records and logs first, and for the selection last"):
        whence.runs.record_trainer(trainer, tmp_path / "run")

"""Gradients logged from a run of the Hugging Face Trainer: those of a build where weights stand still, and the run as it would be."""

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_gradient_log import rows_of
from tests.test_record import documents, hf_trainer
from whence.errors import BadInput, Unsupported

CONFIG = whence.BuildConfig(method="logra", rank=4, batch_positions=64)


def task_of(trainer):
    task = whence.CausalLM(trainer.model, tokenizer=None)
    lists = [
        {"id": one["id"], "input_ids": one["input_ids"].tolist(), "labels": one["input_ids"].tolist()} for one in documents()
    ]
    return task, task.prepare(lists)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_where_the_learning_rate_is_0_the_store_is_the_one_that_is_built(tmp_path, accumulated):
    trainer = hf_trainer(tmp_path, learning_rate=0.0, num_train_epochs=1, gradient_accumulation_steps=accumulated)
    task, train = task_of(trainer)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=CONFIG, quiet=True)
    whence.runs.log_trainer(trainer, log)
    trainer.train()
    logged, built = rows_of(log.finish()), rows_of(whence.build(task, train, tmp_path / "built", config=CONFIG, runtime=QUIET))
    assert logged.keys() == built.keys()
    for name in logged:
        scale = built[name].float().abs().max()
        torch.testing.assert_close(logged[name].float(), built[name].float(), rtol=0.02, atol=float(scale) * 0.01)


@pytest.mark.parametrize("order", ["log first", "record first"])
def test_the_run_is_as_it_would_be_and_may_be_recorded_too(tmp_path, order):
    plain = hf_trainer(tmp_path)
    plain.train()
    trainer = hf_trainer(tmp_path)
    task, train = task_of(trainer)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=CONFIG, quiet=True)
    watches = [
        lambda: whence.runs.log_trainer(trainer, log),
        lambda: whence.runs.record_trainer(trainer, tmp_path / "run", checkpoints=3),
    ]
    for watch in watches if order == "log first" else reversed(watches):
        watch()
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True))
    run = whence.runs.open_run(tmp_path / "run")
    assert run.steps == 9 and sorted(run.ids) == sorted(train.ids)
    store = log.finish()
    assert len(store) == len(train)
    hits = whence.query(store, task, train, k=1, runtime=QUIET)
    assert any("logged while training" in note for note in hits.notes)


def test_rows_are_of_the_weights_of_the_step_that_met_them(tmp_path):
    """One epoch of plain descent, stepped again by hand."""
    options = {
        "optim": "sgd", "weight_decay": 0.0, "learning_rate": 0.5, "num_train_epochs": 1, "lr_scheduler_type": "constant",
        "gradient_accumulation_steps": 1, "max_grad_norm": 0.0,
    }  # fmt: skip
    trainer = hf_trainer(tmp_path, **options)
    task, train = task_of(trainer)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=CONFIG, quiet=True)
    whence.runs.log_trainer(trainer, log)
    whence.runs.record_trainer(trainer, tmp_path / "run", every=1)
    trainer.train()
    run, logged = whence.runs.open_run(tmp_path / "run"), log.finish()
    by_id = {example["id"]: row for row, example in enumerate(logged.examples())}
    rows, steps = rows_of(logged), dict(zip(run.checkpoints, run.log.members, strict=False))
    for step, members in steps.items():
        with run.weights(task.model, [step]):
            built = whence.build(task, train, tmp_path / f"built-{step}", config=CONFIG, runtime=QUIET)
        there = {example["id"]: row for row, example in enumerate(built.examples())}
        expected = rows_of(built)
        for name in (run.ids[member] for member in members):
            for key in rows:
                mine, theirs = rows[key][by_id[name]].float(), expected[key][there[name]].float()
                torch.testing.assert_close(mine, theirs, rtol=0.03, atol=0.02 * float(theirs.abs().max()))


def test_what_does_not_belong_together_is_told(tmp_path):
    trainer = hf_trainer(tmp_path)
    task, train = task_of(trainer)
    other = hf_trainer(tmp_path)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=CONFIG, quiet=True)
    with pytest.raises(BadInput, match="another model than the log's"):
        whence.runs.log_trainer(other, log)
    with pytest.raises(BadInput, match="'0' of the Trainer that the log does not have"):
        whence.runs.log_trainer(trainer, log, id_field="no such field")
    other = hf_trainer(tmp_path)
    other.args._n_gpu = 2
    with pytest.raises(Unsupported, match="on 2 device"):
        whence.runs.log_trainer(other, log)
    with pytest.raises(BadInput, match="trak, whose rows are gradients of the log-odds"):
        whence.pipeline.GradientLog(tmp_path / "other", task, train, config=whence.BuildConfig(method="trak"))

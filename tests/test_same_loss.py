"""Methods that go back through a run hold the task's loss, and the optimizer's state, against what the run recorded."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import whence
from tests.settings import keywords_of
from whence.errors import StoreMismatch, Unsupported
from whence.store import write_json, write_tensors

METHODS = ("source", "tracin")
COUNT = 20


class Lion(torch.optim.Optimizer):
    """Moves by the sign of a mean of gradients, and keeps it under the names of Adam."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")} | {
                        "step": torch.tensor(0.0)
                    }
                state["exp_avg"].lerp_(parameter.grad, 1 - group["betas"][0])
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - group["betas"][1])
                state["step"] += 1
                parameter -= group["lr"] * state["exp_avg"].sign()


class Renamed(torch.optim.AdamW):
    """The same steps, with the state under the names of bitsandbytes."""

    def step(self, closure=None):
        for state in self.state.values():
            state["exp_avg"], state["exp_avg_sq"] = state.pop("state1"), state.pop("state2")
        super().step()
        for state in self.state.values():
            state["state1"], state["state2"] = state.pop("exp_avg"), state.pop("exp_avg_sq")


Renamed.__name__, Lion.__name__ = "AdamW", "AdamW"


def records():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    return [(row, number % 3) for number, row in enumerate(inputs)]


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)).double()


def trained(folder, loss, *, make=torch.optim.SGD, says=False, dropout=0.0, every=2, epochs=4, **settings):
    """A recorded run with a loss of one's own; returns the task."""
    model = network(dropout)
    optimizer = make(model.parameters(), **settings)
    inputs, labels = torch.stack([row for row, _ in records()]), torch.tensor([label for _, label in records()])
    generator = torch.Generator().manual_seed(1)
    with whence.Recorder(folder, model, optimizer, every=every) as run:
        for _ in range(epochs):
            for batch in torch.randperm(COUNT, generator=generator).split(10):
                run.batch(batch.tolist())
                optimizer.zero_grad()
                value = loss(model(inputs[batch]), labels[batch])
                value.backward()
                if says:
                    run.loss(value)
                optimizer.step()
    return whence.Classification(model.eval())


def smoothed(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.3)


def doubled(outputs, labels):
    return 2 * nn.functional.cross_entropy(outputs, labels)


def scores(task, folder, method="source", **options):
    return whence.attribute(task, records(), records()[:2], **keywords_of(method=method, run=folder, **options))


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_another_loss_is_refused(tmp_path, method, make, says):
    settings = {"lr": 0.3} if make is torch.optim.SGD else {"lr": 0.03, "weight_decay": 0.1}
    task = trained(tmp_path / "same", nn.functional.cross_entropy, make=make, says=says, **settings)
    assert not any("not compared" in note for note in scores(task, tmp_path / "same", method).notes)
    for name, loss in (("smoothed", smoothed), ("doubled", doubled)):
        task = trained(tmp_path / name, loss, make=make, says=says, **settings)
        with pytest.raises(StoreMismatch, match="that lowered a loss of" if says else "made again with the task's loss"):
            scores(task, tmp_path / name, method)
    found = scores(task, tmp_path / "doubled", method, any_loss=True)
    assert any("was not compared, as asked" in note for note in found.notes)


def test_a_small_difference_of_the_loss_is_told(tmp_path):
    """As of labels that a collator hides: too little to refuse, too much for rounding."""
    for name, factor, is_told in (("same", 1.0, False), ("near", 1.005, True)):
        task = trained(
            tmp_path / name,
            lambda outputs, labels, f=factor: f * nn.functional.cross_entropy(outputs, labels),
            says=True,
            lr=0.3,
        )
        notes = [note for note in scores(task, tmp_path / name, "tracin").notes if "differs from the task's by 0.50%" in note]
        assert bool(notes) == is_told


def test_a_loss_with_dropout_is_compared_as_one_of_many(tmp_path):
    task = trained(tmp_path / "same", nn.functional.cross_entropy, says=True, dropout=0.4, lr=0.3)
    assert not any("not compared" in note for note in scores(task, tmp_path / "same").notes)
    task = trained(tmp_path / "doubled", doubled, says=True, dropout=0.4, lr=0.3)
    with pytest.raises(StoreMismatch, match="lowered a loss of"):
        scores(task, tmp_path / "doubled")
    assert not task.model.training


@pytest.mark.parametrize("settings", [{"dropout": 0.4}, {"every": 1000, "epochs": 6}])
def test_a_loss_that_cannot_be_compared_is_said_not_to_be(tmp_path, settings):
    task = trained(tmp_path, nn.functional.cross_entropy, lr=0.3, **settings)
    assert any("was not compared: the run does not say its losses" in note for note in scores(task, tmp_path).notes)


def test_losses_are_those_of_the_steps_that_are_kept(tmp_path):
    """A stopped run forgets what it said of steps that are done again."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.stack([row for row, _ in records()]), torch.tensor([label for _, label in records()])
    said = []

    def train(run, start, stop):
        for number in range(start, stop):
            for part in (range(5), range(5, 10)):  # two micro-batches
                run.batch(part, divided_by=10)
                value = nn.functional.cross_entropy(model(inputs[part]), labels[part], reduction="sum") / 10
                value.backward()
                run.loss(value)
                said.append((number, float(value.detach())))
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(KeyboardInterrupt), whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        train(run, 0, 5)
        run.flush()
        raise KeyboardInterrupt
    del said[4 * 2 :]
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        train(run, run.restore(), 6)
    found = whence.runs.open_run(tmp_path).losses
    assert found == {step: pytest.approx(sum(value for number, value in said if number == step)) for step in (0, 2, 4)}


def trainer_of(tmp_path, model_folder, *, dropout=0.0, **options):
    transformers = pytest.importorskip("transformers")
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(model_folder, num_labels=2, pad_token_id=0, **rates)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(6, dtype=torch.long)
    data = [
        {"input_ids": torch.randint(1, 200, (6,), generator=generator), "attention_mask": mask, "labels": number % 2}
        for number in range(12)
    ]  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, num_train_epochs=2, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, gradient_accumulation_steps=2, learning_rate=1e-2, **options,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=data), data


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_a_trainer_is_compared(tmp_path, model_folder):
    for name, options, is_same in (
        ("plain", {}, True), ("dropping", {"dropout": 0.1}, True), ("smoothed", {"label_smoothing_factor": 0.4}, False),
    ):  # fmt: skip
        trainer, data = trainer_of(tmp_path, model_folder, **options)
        whence.runs.record_trainer(trainer, tmp_path / name)
        trainer.train()
        run = whence.runs.open_run(tmp_path / name)
        assert sorted(run.losses) == list(run.checkpoints[:-1])
        task = whence.Classification(trainer.model)
        own = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "label": row["labels"]} for row in data]
        ask = {"method": "tracin", "run": tmp_path / name}
        if is_same:
            assert not any("not compared" in note for note in whence.attribute(task, own, own[:1], **keywords_of(**ask)).notes)
        else:
            with pytest.raises(StoreMismatch, match="lowered a loss of .* and a task that gives"):
                whence.attribute(task, own, own[:1], **keywords_of(**ask))


# Optimizers


def test_an_optimizer_with_another_state_is_refused_by_what_it_lacks(tmp_path):
    task = trained(tmp_path / "r", nn.functional.cross_entropy, make=Renamed, lr=0.03)
    assert whence.runs.open_run(tmp_path / "r").record["settings"][0]["module"] == "tests.test_same_loss"
    for method in ("source", "astra-source", "unroll"):
        with pytest.raises(
            Unsupported,
            match="AdamW of tests.test_same_loss, whose state is .*state1, state2, step: it keeps moments in few bits",
        ):
            scores(task, tmp_path / "r", method)


def test_an_optimizer_that_keeps_no_tensors_is_refused(tmp_path):
    task = trained(tmp_path / "r", nn.functional.cross_entropy, make=Renamed, lr=0.03)
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    del record["seal"]
    record["rules"] = []  # as it was before steps were watched
    from whence.store import read_tensors, write_tensors

    for kept in record["checkpoints"]:
        path = tmp_path / "r" / kept["file"]
        kept["sha256"] = write_tensors(path, {k: v.clone() for k, v in read_tensors(path).items() if k.startswith("model.")})
    write_json(tmp_path / "r" / "run.json", record)
    with pytest.raises(Unsupported, match="which moved .* and keeps nothing of it as tensors"):
        scores(task, tmp_path / "r")


def test_an_optimizer_that_moves_otherwise_than_its_name_says_is_refused(tmp_path):
    task = trained(tmp_path / "r", nn.functional.cross_entropy, make=Lion, lr=0.03)
    with pytest.raises(Unsupported, match="AdamW of .*, whose state is exp_avg, exp_avg_sq, step: its steps follow no rule"):
        scores(task, tmp_path / "r")


def test_a_stage_with_a_new_optimizer_keeps_the_state_of_the_one_before(tmp_path):
    """At its beginning there is none yet: the mean of 1 / (sqrt(v) + eps) would be half of zero."""
    model = network()
    inputs, labels = torch.stack([row for row, _ in records()]), torch.tensor([label for _, label in records()])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    with whence.Recorder(tmp_path, model, optimizer, every=4) as run:
        run.stage("first")
        for step in range(12):
            if step == 6:
                optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
                run.stage("second", optimizer)
            run.batch(range(COUNT))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    found = whence.runs.open_run(tmp_path)
    assert found.checkpoints == (0, 4, 6, 10, 12)
    whole = found.preconditioner([4, 6])
    assert all(bool((value > found.preconditioner([4])[name] / 2 * 1.01).all()) for name, value in whole.items())
    assert scores(whence.Classification(model), tmp_path).scores.any()
    # As earlier versions kept it.
    wanted = found.preconditioner([4, 4])
    tensors = {name: value for name, value in found.tensors(6).items() if name.startswith("model.")}
    kept = found.record["checkpoints"][2]
    kept["sha256"] = write_tensors(tmp_path / kept["file"], tensors)
    bare = replace(found)
    again = bare.preconditioner([4, 6])
    with pytest.raises(Unsupported, match="checkpoints after 6 steps without the state of the optimizer"):
        bare.preconditioner([6])
    assert all(torch.equal(again[name], value) for name, value in wanted.items()) and len(tensors)

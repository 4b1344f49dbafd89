"""Recording a training run: what is written, going on after a stop, refusals, the Hugging Face Trainer."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import whence
from tests.settings import QUIET
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch, Unsupported


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)).double()
    return model, inputs, (inputs.sum(1) > 0).long()


def step(model, optimizer, inputs, labels, batch):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
    optimizer.step()


def batch_of(number):
    return torch.randperm(24, generator=torch.Generator().manual_seed(number))[:6]


class Killed(Exception):
    pass


MAKERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
}


def run_of(folder, name, *, steps=10, every=4, kill_at=None):
    """Train with a falling learning rate, from wherever the folder stopped."""
    model, inputs, labels = problem()
    optimizer = MAKERS[name](model.parameters())
    top = optimizer.param_groups[0]["lr"]
    with whence.Recorder(folder, model, optimizer, every=every, seed=7) as run:
        for number in range(run.restore(), steps):
            if number == kill_at:
                raise Killed
            optimizer.param_groups[0]["lr"] = top * (1 - number / steps)
            run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))
            optimizer.param_groups[0]["lr"] = 99.0  # what a schedule does afterwards is not the step's
    return model


def test_what_a_run_keeps(tmp_path):
    model = run_of(tmp_path, "momentum")
    run = whence.runs.open_run(tmp_path)
    assert run.steps == 10 and run.checkpoints == (0, 4, 8, 10) and run.record["seed"] == 7
    assert [[run.ids[one] for one in members] for members in run.log.members] == [
        [str(one) for one in batch_of(number).tolist()] for number in range(10)
    ]
    assert [rates[0] for rates in run.log.rates] == pytest.approx([0.1 * (1 - number / 10) for number in range(10)])
    assert run.log.weights == [[1 / 6] * 6] * 10 and run.log.factors == [1.0] * 10
    (settings,) = run.record["settings"]
    (group,) = settings["groups"]
    assert settings["optimizer"] == "SGD" and (group["momentum"], group["weight_decay"]) == (0.9, 0.01)
    assert group["parameters"] == [name for name, _ in model.named_parameters()]
    last = run.tensors(10)
    for name, value in model.named_parameters():
        assert torch.equal(last[f"model.{name}"], value)
        assert last[f"state_momentum_buffer.{name}"].any()
    start, _, _ = problem()
    assert all(torch.equal(run.tensors(0)[f"model.{name}"], value) for name, value in start.named_parameters())
    recipe = run.recipe()
    assert recipe == whence.Recipe("sgd", pytest.approx(0.55), momentum=0.9, weight_decay=0.01, loss_divisor=pytest.approx(1.0))


def test_a_run_moves_nothing(tmp_path):
    model, inputs, labels = problem()
    optimizer = MAKERS["adamw"](model.parameters())
    for number in range(10):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / 10)
        step(model, optimizer, inputs, labels, batch_of(number))
    recorded = run_of(tmp_path, "adamw")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), recorded.parameters(), strict=True))
    recipe = whence.runs.open_run(tmp_path).recipe()
    assert recipe.optimizer == "adamw" and recipe.weight_decay == 0.01
    assert recipe.inverse_preconditioner == pytest.approx(whence.curvature.inverse_preconditioner(model, optimizer))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kill_at", [0, 3, 4, 9])
def test_a_stopped_run_goes_on_with_the_same_bytes(tmp_path, name, kill_at):
    whole = run_of(tmp_path / "whole", name)
    with pytest.raises(Killed):
        run_of(tmp_path / "cut", name, kill_at=kill_at)
    with pytest.raises(BadInput, match=r"that stopped after \d steps; needed a finished run"):
        whence.runs.open_run(tmp_path / "cut")
    again = run_of(tmp_path / "cut", name)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    first, second = whence.runs.open_run(tmp_path / "whole"), whence.runs.open_run(tmp_path / "cut")
    assert first.log == second.log and first.record["checkpoints"] == second.record["checkpoints"]


def test_a_caller_may_go_on_from_a_checkpoint_of_its_own(tmp_path):
    model, inputs, labels = problem()
    optimizer = MAKERS["momentum"](model.parameters())
    with pytest.raises(Killed), whence.Recorder(tmp_path, model, optimizer, every=4) as run:
        for number in range(7):
            run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))
            if number == 4:
                own = {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()
                run.flush()
        raise Killed
    with whence.Recorder(tmp_path, model, optimizer, every=4) as run:
        with pytest.raises(
            BadInput, match="found a run of 5 steps in .* that was not finished; needed to know from which step"
        ):
            run.batch([0])
        with pytest.raises(
            BadInput, match="found a record of 5 steps in .*, to go on from step 6; needed all steps up to there"
        ):
            run.resume(6)
        model.load_state_dict(own[0])
        optimizer.load_state_dict(own[1])
        run.resume(5)
        run.batch(batch_of(5))
        step(model, optimizer, inputs, labels, batch_of(5))
    found = whence.runs.open_run(tmp_path)
    assert found.steps == 6 and found.checkpoints == (0, 4, 6)
    assert [[found.ids[one] for one in members] for members in found.log.members] == [
        [str(one) for one in batch_of(number).tolist()] for number in range(6)
    ]


def test_going_back_drops_what_came_after(tmp_path):
    with pytest.raises(Killed):
        run_of(tmp_path, "momentum", kill_at=9)
    model, _, _ = problem()
    optimizer = MAKERS["momentum"](model.parameters())
    with whence.Recorder(tmp_path, model, optimizer, every=4) as run:
        assert run.steps == 8
        run.resume(5)
        assert run.steps == 5
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["steps"] == 5 and [kept["step"] for kept in record["checkpoints"]] == [0, 4, 5]
    assert whence.runs.open_run(tmp_path).log.members == whence.runs.open_run(tmp_path).log.members[:5]


def test_stages_are_taken_up_again(tmp_path):
    def train(kill_at=None):
        model, inputs, labels = problem()
        stages = [MAKERS[name](model.parameters()) for name in MAKERS]
        begins = {0: ("first", stages[0]), 3: ("second", stages[1])}
        with whence.Recorder(tmp_path / str(kill_at is None), model, stages[0], every=2) as run:
            for stage, (name, optimizer) in begins.items():
                if stage < run.steps:
                    run.stage(name, optimizer)
            for number in range(run.restore(), 7):
                if number == kill_at:
                    raise Killed
                if number in begins:
                    run.stage(*begins[number])
                run.batch(batch_of(number))
                step(model, stages[number >= 3], inputs, labels, batch_of(number))
        return model

    whole = train()
    (tmp_path / "True").rename(tmp_path / "whole")
    with pytest.raises(Killed):
        train(kill_at=6)
    (tmp_path / "False").rename(tmp_path / "True")
    again = train()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    first, second = whence.runs.open_run(tmp_path / "whole"), whence.runs.open_run(tmp_path / "True")
    begun = [{"name": "first", "start": 0, "is_new": True}, {"name": "second", "start": 3, "is_new": True}]
    assert first.record["stages"] == second.record["stages"] == begun
    assert first.checkpoints == second.checkpoints == (0, 2, 3, 5, 7)
    assert [segment.is_adaptive for segment in second.segments(1)] == [False, True]


def test_what_is_not_trained_has_no_part(tmp_path):
    """Parameters that the optimizer does not have."""
    for name, make in MAKERS.items():
        model, inputs, labels = problem()
        optimizer = make(model[2].parameters())
        with whence.Recorder(tmp_path / name, model, optimizer, every=2) as run:
            for number in range(4):
                run.batch(batch_of(number))
                step(model, optimizer, inputs, labels, batch_of(number))
        task = whence.Classification(model)
        train = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
        asked = Dataset(train.examples[:2])
        table = whence.attribute(task, train, asked, per_unit=True, method=whence.Source(run=tmp_path / name), runtime=QUIET)
        assert not table.parts["0.weight"].any() and table.parts["2.weight"].any()


def test_accumulation_clipping_and_divisors(tmp_path):
    model, inputs, labels = problem()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "weight_decay": 0.5}, {"params": model[2].parameters(), "lr": 0.2}], lr=0.1
    )
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        for divided_by in (None, 1, 30.0):
            optimizer.zero_grad()
            for batch in ([0, 1], [2, 3, 4]):
                run.batch(torch.tensor(batch), divided_by=divided_by)
                loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch], reduction="sum")
                (loss / (divided_by or 5)).backward()
            before = torch.cat([one.grad.flatten() for one in model.parameters()]).norm()
            norm = run.clip(0.05)
            after = torch.cat([one.grad.flatten() for one in model.parameters()]).norm()
            torch.testing.assert_close(norm, before)
            factor = float(after / before)
            optimizer.step()
            assert run.log.factors[-1] == pytest.approx(factor) and factor <= 1
    found = whence.runs.open_run(tmp_path)
    assert [weights[0] for weights in found.log.weights] == pytest.approx([0.2, 1.0, 1 / 30])
    (segment,) = found.segments(1)
    weight = sum(5 * weights[0] * factor for weights, factor in zip(found.log.weights, found.log.factors, strict=True))
    assert segment.reach["0.weight"] == pytest.approx(0.1 * weight) and segment.reach["2.bias"] == pytest.approx(0.2 * weight)
    assert segment.decay["0.bias"] == pytest.approx(0.3 * 0.5) and segment.decay["2.bias"] == 0
    assert found.recipe().loss_divisor == pytest.approx(3 / (5 * (0.2 + 1 + 1 / 30)))


def test_forgotten_lines_are_told(tmp_path):
    model, inputs, labels = problem()
    optimizer = MAKERS["momentum"](model.parameters())
    with whence.Recorder(tmp_path / "a", model, optimizer, every=4) as run:
        with pytest.raises(BadInput, match="found step 1 of the optimizer without the ids of its batch; needed to know which"):
            step(model, optimizer, inputs, labels, [0])
        for single in (5, "5", torch.tensor(5)):
            with pytest.raises(BadInput, match="found '5' as the ids of a batch; needed several"):
                run.batch(single)
        with pytest.raises(BadInput, match="found a batch of 0 examples with divided_by=None; needed at least one id"):
            run.batch([])
        with pytest.raises(
            BadInput, match="found a batch of 1 examples with divided_by=0; needed at least one id and a positive"
        ):
            run.batch([0], divided_by=0)
        run.batch([0])
        step(model, optimizer, inputs, labels, [0])
        with (
            pytest.raises(BadInput, match="found another .* writing to"),
            whence.Recorder(tmp_path / "a", model, optimizer, every=4),
        ):
            pass
    step(model, optimizer, inputs, labels, [0])  # nobody watches any more
    for use in (run.batch, run.stage):
        with pytest.raises(BadInput, match="found a recorder that is not open; needed one that watches the optimizer"):
            use("x")
    with pytest.raises(BadInput, match="found every=0; needed 1 or more steps between checkpoints"):
        whence.Recorder(tmp_path / "b", model, optimizer, every=0)
    with pytest.raises(Unsupported, match="found an optimizer that steps parameters which the model does not have"):
        whence.Recorder(tmp_path / "b", problem()[0], optimizer, every=1)
    with (
        pytest.raises(BadInput, match="found a finished run of 1 steps in .*; needed a folder of its own"),
        whence.Recorder(tmp_path / "a", model, optimizer, every=1),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(BadInput, match="found no run.json in .*; needed a folder that whence.Recorder wrote"):
        whence.runs.open_run(tmp_path)
    with pytest.raises(Killed):
        run_of(tmp_path / "a", "momentum", kill_at=5)
    small = nn.Linear(4, 3).double()
    with (
        pytest.raises(StoreMismatch, match="found a run of a model with other weights in"),
        whence.Recorder(tmp_path / "a", small, torch.optim.SGD(small.parameters(), lr=1), every=1),
    ):
        pass
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    del record["seal"]
    (tmp_path / "a" / "run.json").write_text(json.dumps({**record, "version": 9}))
    model, _, _ = problem()
    for enter in (
        lambda: whence.runs.open_run(tmp_path / "a"),
        lambda: whence.Recorder(tmp_path / "a", model, MAKERS["momentum"](model.parameters()), every=1).__enter__(),
    ):
        with pytest.raises(StoreMismatch, match="found a run of version 9 in .*; needed version 1"):
            enter()


def test_damaged_files_are_told(tmp_path):
    run_of(tmp_path, "momentum")
    run = whence.runs.open_run(tmp_path)
    kept = tmp_path / run.record["checkpoints"][1]["file"]
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(StoreCorrupt, match="found a damaged file .*checkpoint-000000004.safetensors"):
        run.tensors(4)
    kept.unlink()
    with pytest.raises(StoreCorrupt, match="found a damaged file .*checkpoint-000000004.safetensors"):
        run.tensors(4)
    (tmp_path / run.record["logs"][0]["file"]).unlink()
    with pytest.raises(StoreCorrupt, match="found a damaged file .*steps-000000000-000000004.safetensors"):
        whence.runs.open_run(tmp_path)


def test_two_optimizers_in_one_stage_are_refused(tmp_path):
    model, inputs, labels = problem()
    first, second = (MAKERS[name](model.parameters()) for name in MAKERS)
    with whence.Recorder(tmp_path, model, first, every=4) as run:
        for optimizer in (first, second):
            run._watch((optimizer,))
            run.batch([0, 1])
            step(model, optimizer, inputs, labels, [0, 1])
    with pytest.raises(Unsupported, match="found more than one optimizer in the steps 0 to 2; needed one per stage"):
        whence.runs.open_run(tmp_path).segments(1)


def test_files_are_plain_safetensors(tmp_path):
    run_of(tmp_path, "momentum", steps=4)
    log = load_file(tmp_path / "steps-000000000-000000004.safetensors")
    assert log["ends_S"].tolist() == [6, 12, 18, 24] and log["rates"].shape == (4,) and log["members_M"].shape == (24,)
    assert json.loads((tmp_path / "ids.json").read_text())[:6] == [str(one) for one in batch_of(0).tolist()]


def hf_trainer(tmp_path, *, data=None, model=None, collator=None, compute_loss_func=None, **options):
    pytest.importorskip("accelerate")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=30, n_positions=16, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = model or GPT2LMHeadModel(config)
    settings = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_grad_norm": 0.5,
        "learning_rate": 1e-2, "weight_decay": 0.1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "logging_strategy": "no", "seed": 3,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(tmp_path / "trainer"), **{**settings, **options})
    return Trainer(
        model,
        arguments,
        train_dataset=data or documents(),
        data_collator=collator or collate,
        compute_loss_func=compute_loss_func,
    )


def documents():
    generator = torch.Generator().manual_seed(2)
    lengths = [4 + number % 3 for number in range(14)]
    return [
        {"id": f"doc-{number}", "input_ids": torch.randint(30, (length,), generator=generator), "junk": "x"}
        for number, length in enumerate(lengths)
    ]


def collate(examples):
    assert all(set(example) == {"input_ids"} for example in examples)
    rows = [example["input_ids"] for example in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}


def test_the_trainer_is_recorded_as_it_trains(tmp_path):
    plain = hf_trainer(tmp_path)
    plain.train()
    trainer = hf_trainer(tmp_path)
    whence.runs.record_trainer(trainer, tmp_path / "run", checkpoints=3)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True))
    run = whence.runs.open_run(tmp_path / "run")
    assert run.steps == trainer.state.global_step == 9 and run.checkpoints == (0, 3, 6, 9)
    lengths = {example["id"]: len(example["input_ids"]) for example in documents()}
    for epoch in range(3):
        met = [run.ids[one] for members in run.log.members[3 * epoch : 3 * epoch + 3] for one in members]
        assert sorted(met) == sorted(lengths)
    for members, weights in zip(run.log.members, run.log.weights, strict=True):
        total = sum(lengths[run.ids[one]] for one in members)
        # Versions of transformers differ in whether the first token, which is not predicted, counts; the next test steps by hand.
        assert len(set(weights)) == 1 and round(1 / weights[0]) in (total, total - len(members))
    assert all(0 < factor < 1 for factor in run.log.factors)
    rates = [rates[0] for rates in run.log.rates]
    assert rates == pytest.approx([1e-2 * (1 - number / 9) for number in range(9)])
    decays = {group["weight_decay"] for group in run.record["settings"][0]["groups"]}
    assert decays == {0.0, 0.1} and run.record["settings"][0]["optimizer"] == "AdamW"
    task = whence.CausalLM(trainer.model, tokenizer=None)
    train = task.prepare(
        [{"id": one["id"], "input_ids": one["input_ids"].tolist(), "labels": one["input_ids"].tolist()} for one in documents()]
    )
    table = whence.attribute(task, train, Dataset(train.examples[:2]), method=whence.Source(run=run.folder), runtime=QUIET)
    assert table.scores.shape == (2, 14) and bool(torch.isfinite(table.scores).all())
    assert table.scores[0].argmax() == 0 and table.scores[1].argmax() == 1


def test_every_step_of_the_trainer_is_the_one_that_is_written(tmp_path):
    """The recorded batches, weights and factors, stepped by hand, end in the Trainer's weights."""
    options = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": 0.1}
    trainer = hf_trainer(tmp_path, **options)
    model, _ = trainer.model, None
    start = {name: value.clone() for name, value in model.state_dict().items()}
    whence.runs.record_trainer(trainer, tmp_path / "run")
    trainer.train()
    end = {name: value.clone() for name, value in model.state_dict().items()}
    run, by_id = whence.runs.open_run(tmp_path / "run"), {example["id"]: example for example in documents()}
    model.load_state_dict(start)
    for members, weights, rates, factor in zip(run.log.members, run.log.weights, run.log.rates, run.log.factors, strict=True):
        model.zero_grad()
        for one, weight in zip(members, weights, strict=True):
            ids = by_id[run.ids[one]]["input_ids"][None]
            (model(ids, labels=ids).loss * (ids.shape[1] - 1) * weight).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= rates[0] * factor * value.grad
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, end[name], rtol=1e-4, atol=1e-5)


def test_labels_that_a_collator_hides_are_told(tmp_path):
    """Padding that is also the end of a text: its last token has a label in the task and none in the run."""
    end = 29
    texts = [
        {**one, "input_ids": torch.cat([one["input_ids"].clamp(max=28).repeat(4), torch.tensor([end])])} for one in documents()
    ]
    for one in texts:
        one["input_ids"] = one["input_ids"][-16:]

    def hiding(examples):
        batch = collate(examples)
        return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] == end, -100)}

    notes = {}
    for name, collator in (("hidden", hiding), ("whole", collate)):
        trainer = hf_trainer(tmp_path, data=texts, collator=collator, weight_decay=0.0)
        whence.runs.record_trainer(trainer, tmp_path / name, checkpoints=3)
        trainer.train()
        model = trainer.model
        with torch.no_grad():
            task = whence.CausalLM(model, tokenizer=None)
        train = task.prepare(
            [{"id": one["id"], "input_ids": one["input_ids"].tolist(), "labels": one["input_ids"].tolist()} for one in texts]
        )
        try:
            table = whence.attribute(
                task, train, Dataset(train.examples[:1]), method=whence.settings.TracIn(run=tmp_path / name), runtime=QUIET
            )
            notes[name] = [note for note in table.notes if "differs from the task's" in note]
        except StoreMismatch as error:
            notes[name] = [str(error)]
    assert notes["hidden"] and not notes["whole"], notes


class Bare(nn.Module):
    """A language model of one's own: it takes no number of items, and means over the tokens that it predicts."""

    def __init__(self, shifts=True):
        super().__init__()
        self.embed, self.head, self.shifts = nn.Embedding(30, 8), nn.Linear(8, 30), shifts

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.embed(input_ids))
        lag = int(self.shifts)
        predicted = logits[:, : logits.shape[1] - lag].flatten(0, 1)
        return {"loss": nn.functional.cross_entropy(predicted, labels[:, lag:].flatten()), "logits": logits}


def half_labelled(examples):
    """A collator whose second row has no label on its first token, and whose others have."""
    batch = collate(examples)
    batch["labels"][1:2, 0] = -100
    return batch


def own_loss(outputs, labels, num_items_in_batch=None):
    losses = nn.functional.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return losses / num_items_in_batch


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("labelled", [collate, half_labelled])
@pytest.mark.parametrize("kind", ["gpt2", "smoothed", "bare", "bare, not shifted", "own loss"])
def test_a_divisor_is_what_the_trainers_losses_are_means_over(tmp_path, kind, labelled, accumulated):
    """Of every step the weighted sum of its examples' losses is the loss that the Trainer logs."""
    smoothing = 0.2 if kind == "smoothed" else 0.0
    trainer = hf_trainer(
        tmp_path, logging_strategy="steps", logging_steps=1, learning_rate=0.0, num_train_epochs=1, label_smoothing_factor=smoothing,
        model=Bare(shifts=kind == "bare") if "bare" in kind else None, compute_loss_func=own_loss if kind == "own loss" else None,
        gradient_accumulation_steps=accumulated, collator=labelled,
    )  # fmt: skip
    whence.runs.record_trainer(trainer, tmp_path / "run", every=1)
    trainer.train()
    run, model = whence.runs.open_run(tmp_path / "run"), trainer.model.eval().requires_grad_(False)
    by_id = {example["id"]: example for example in documents()}
    logged = {entry["step"] - 1: float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry}
    assert len(logged) == run.steps and set(run.losses) == set(logged)
    for step, loss in logged.items():
        total = 0.0
        for place, (member, weight) in enumerate(zip(run.log.members[step], run.log.weights[step], strict=True)):
            batch = collate([{"input_ids": by_id[run.ids[member]]["input_ids"]}])
            if labelled is half_labelled and place % 3 == 1:
                batch["labels"][0, 0] = -100
            logits, labels, lag = model(**batch)["logits"], batch["labels"], int(kind != "bare, not shifted")
            predicted = logits[:, : logits.shape[1] - lag].flatten(0, 1)
            total += weight * float(
                nn.functional.cross_entropy(predicted, labels[:, lag:].flatten(), reduction="sum", label_smoothing=smoothing)
            )
        assert total == pytest.approx(loss, rel=2e-4), step
        assert run.losses[step] == pytest.approx(loss, rel=2e-4), step


# transformers does not read an optimizer's state with an older one.
@pytest.mark.skipif(int(torch.__version__.split(".")[1]) < 6, reason="resuming the Trainer needs torch 2.6")
def test_the_trainer_goes_on_where_it_stopped(tmp_path):
    whole = hf_trainer(tmp_path, save_strategy="steps", save_steps=2)
    whence.runs.record_trainer(whole, tmp_path / "whole")
    whole.train()

    cut = hf_trainer(tmp_path / "cut", save_strategy="steps", save_steps=2)
    whence.runs.record_trainer(cut, tmp_path / "run")
    inner, calls = cut.training_step, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 11:
            raise Killed
        return inner(*args, **kwargs)

    cut.training_step = killed
    with pytest.raises(Killed):
        cut.train()
    again = hf_trainer(tmp_path / "cut", save_strategy="steps", save_steps=2)
    whence.runs.record_trainer(again, tmp_path / "run")
    again.train(resume_from_checkpoint=True)
    first, second = whence.runs.open_run(tmp_path / "whole"), whence.runs.open_run(tmp_path / "run")
    assert [[first.ids[one] for one in members] for members in first.log.members] == [
        [second.ids[one] for one in members] for members in second.log.members
    ]
    assert first.log.rates == second.log.rates and first.checkpoints == second.checkpoints


def test_trainers_that_cannot_be_recorded(tmp_path):
    for options, told in (
        ({"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"}, "load_best_model_at_end"),
    ):
        trainer = hf_trainer(tmp_path)
        for key, value in options.items():
            setattr(trainer.args, key, value)
        with pytest.raises(Unsupported, match=f"found a Trainer with {told}; needed a run that ends"):
            whence.runs.record_trainer(trainer, tmp_path / "run")
    trainer = hf_trainer(tmp_path)
    trainer.args.fp16 = True
    with pytest.raises(Unsupported, match=r"found a Trainer with fp16=True on 1 device\(s\); needed one device"):
        whence.runs.record_trainer(trainer, tmp_path / "run")
    trainer = hf_trainer(tmp_path)
    trainer.train_dataset = iter(())
    with pytest.raises(BadInput, match="found a Trainer without training data of known length"):
        whence.runs.record_trainer(trainer, tmp_path / "run")


def test_a_changed_dataset_is_refused_by_content_where_the_recorder_saw_it(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    records = [(torch.randn(3).double(), place % 2) for place in range(6)]
    task = whence.Classification(model)
    dataset = task.prepare(records)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with whence.Recorder(tmp_path / "run", model, optimizer, every=2, data=dataset) as run:
        for _ in range(4):
            run.batch(range(6))
            nn.functional.cross_entropy(
                model(torch.stack([row for row, _ in records])), torch.tensor([label for _, label in records])
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = whence.runs.open_run(tmp_path / "run")
    assert found.check(model, dataset) == []
    changed = task.prepare([(records[0][0] + 1, 0), *records[1:]])
    with pytest.raises(
        StoreMismatch, match="found training data with the fingerprint .*; needed the same examples in the same order"
    ):
        found.check(model, changed)


def test_a_run_that_stopped_before_its_first_step_is_begun_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match="without the ids of its batch"), whence.Recorder(tmp_path, model, optimizer, every=2):
        optimizer.step()
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        run.batch([0, 1])
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert whence.runs.open_run(tmp_path).steps == 1


def test_learning_rates_of_a_recipe_are_those_of_each_stages_own_groups(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))  # 16 and 10 numbers
    first, second = (list(layer.parameters()) for layer in model)
    stages = (
        [{"params": first + second, "lr": 0.5}],
        [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.3}],
        [{"params": second, "lr": 0.2}],
    )
    with whence.Recorder(tmp_path, model, torch.optim.SGD(stages[0]), every=1) as run:
        for number, groups in enumerate(stages):
            optimizer = torch.optim.SGD(groups)
            run.stage(f"stage {number}", optimizer)
            run.batch([0])
            model(torch.randn(1, 3)).sum().backward()
            optimizer.step()
    wanted = 0.5 + (16 * 0.1 + 10 * 0.3) / 26 + 0.2
    assert whence.runs.open_run(tmp_path).recipe().learning_rate_sum == pytest.approx(wanted)


def test_a_run_without_a_step_is_begun_again(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with whence.Recorder(tmp_path, model, optimizer, every=2):
        pass
    with pytest.raises(
        BadInput, match="a run in .* that stopped after 0 steps; .*train on with the recorder on the same folder"
    ):
        whence.runs.open_run(tmp_path)
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        run.batch([0, 1])
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert whence.runs.open_run(tmp_path).steps == 1


def test_clipping_of_a_step_that_was_not_taken_is_forgotten(tmp_path):
    model, inputs, labels = problem()
    optimizer = MAKERS["adamw"](model.parameters())
    with whence.Recorder(tmp_path, model, optimizer, every=1) as run:
        for number in range(2):
            run.batch(batch_of(number))
            if number:
                run.scaled(0.25)
                run.restore()
                run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))
    assert whence.runs.open_run(tmp_path).log.factors == [1.0, 1.0]


def test_a_stage_does_not_open_a_recorder(tmp_path):
    model, inputs, labels = problem()
    optimizer = MAKERS["adamw"](model.parameters())
    run = whence.Recorder(tmp_path, model, optimizer, every=1)
    with pytest.raises(BadInput, match="found a recorder that is not open"):
        run.stage("first", optimizer)
    step(model, optimizer, inputs, labels, batch_of(0))  # nobody watches

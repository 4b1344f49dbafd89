"""What a loop gave its model is held against the examples of the task that attributes the run."""

import json
from functools import partial

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.store.files import SEAL, read_tensors, write_record, write_tensors


def text_trainer(tmp_path, data, collator, dropout=0.0):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=30, n_positions=16, bos_token_id=None, eos_token_id=None, **rates)
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=2, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=data, data_collator=collator)


def padded(examples, side="right", hidden=(), last=None):
    """As collators of language models pad: labels are the tokens, -100 where there is padding or a hidden token."""
    rows = [torch.as_tensor(one["input_ids"])[:last] for one in examples]
    width = max(map(len, rows))
    ids, labels, mask = (
        torch.zeros(len(rows), width).long(),
        torch.full((len(rows), width), -100),
        torch.zeros(len(rows), width),
    )
    for row, tokens in enumerate(rows):
        at = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, at], labels[row, at], mask[row, at] = tokens, tokens, 1
    for token in hidden:
        labels = labels.masked_fill(ids == token, -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}


@pytest.mark.filterwarnings("ignore")
def test_what_a_trainer_was_given_is_held_against_the_tasks_examples(tmp_path):
    """Tokens that differ are refused, labels that differ are told, dropout or not; padding on either side is none of them."""
    pytest.importorskip("accelerate")
    generator = torch.Generator().manual_seed(2)
    texts = [
        {"id": f"doc-{number}", "input_ids": [*torch.randint(1, 28, (6 + number % 3,), generator=generator).tolist(), 29]}
        for number in range(8)
    ]

    def recorded(name, collator, dropout=0.0):
        trainer = text_trainer(tmp_path, texts, collator, dropout)
        whence.runs.record_trainer(trainer, tmp_path / name, checkpoints=1)
        trainer.train()
        return partial(notes, trainer.model, tmp_path / name)

    def notes(model, run, own=texts, **settings):
        records = [{**one, "labels": one.get("labels", one["input_ids"])} for one in own]
        method = whence.settings.TracIn(run=run, **settings)
        table = whence.attribute(whence.CausalLM(model, tokenizer=None), records, records[:1], method=method, runtime=QUIET)
        return [note for note in table.notes if "by id only" in note or "labels" in note or "other tokens" in note]

    assert recorded("left", partial(padded, side="left"))(any_loss=True) == []  # positions differ, and so does the loss
    hidden = recorded("hidden", partial(padded, hidden=[29]))
    other = "8 of 8 examples were trained on with other labels than the task's, the first 'doc-0' with 5 labels, in the task 6"
    with pytest.raises(StoreMismatch, match=f"lowered a loss of .* and a task that gives .*; {other}"):
        hidden()
    (labels,) = hidden(any_loss=True)
    assert labels.startswith(other)
    as_trained = [{**one, "labels": [-100 if token == 29 else token for token in one["input_ids"]]} for one in texts]
    assert hidden(own=as_trained) == []
    cut = recorded("cut", partial(padded, last=7), dropout=0.5)
    with pytest.raises(
        StoreMismatch,
        match="found 5 of 8 examples with other tokens .*'doc-1' of 8 tokens, there 7; .*max_length.* take source, tracin or less",
    ):
        cut()
    assert cut(any_loss=True) == ["5 of 8 examples have other tokens than in the run, the first 'doc-1'"]


def test_contents_go_where_their_steps_go(tmp_path):
    """Dropped with the steps that are dropped, and refused where a file has others than a recorder writes."""
    torch.manual_seed(0)
    model = nn.Embedding(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(run, start, stop):
        for step in range(start, stop):
            ids = torch.tensor([[step % 8, 1]])
            run.batch([f"x{step}"], inputs={"input_ids": ids})
            model(ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def stopped():
        with pytest.raises(KeyboardInterrupt), whence.Recorder(tmp_path, model, optimizer, every=2) as run:
            train(run, run.restore(), 5)
            run.flush()
            raise KeyboardInterrupt

    stopped()
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        assert sorted(run.log.contents) == [f"x{step}" for step in range(5)]
        start = run.restore()
        assert start == 4 and sorted(run.log.contents) == [f"x{step}" for step in range(4)]
        train(run, start, 6)
    log = whence.runs.open_run(tmp_path).log
    assert [step for step, _ in log.contents.values()] == [0, 0, 2, 2, 4, 4]  # the first step of their file
    assert {content.num_tokens for _, content in log.contents.values()} == {2}
    path = next(tmp_path.glob("steps-*-000000006.safetensors"))
    tensors = dict(read_tensors(path))
    for wrong in (tensors["contents"][:-1], tensors["contents"].double(), torch.full((5,), 99)):
        digest = write_tensors(path, {**tensors, "contents": wrong})
        record = json.loads((tmp_path / "run.json").read_text())
        record["logs"][-1]["sha256"] = digest
        write_record(tmp_path / "run.json", {key: value for key, value in record.items() if key != SEAL})
        with pytest.raises(StoreCorrupt, match="contents"):
            whence.runs.open_run(tmp_path)


def test_inputs_that_are_not_by_keyword_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with whence.Recorder(tmp_path, model, optimizer, every=1) as run:
        for inputs in (torch.ones(1, 2), [1]):
            with pytest.raises(BadInput, match="found inputs of type"):
                run.batch(["x"], inputs=inputs)
        run.batch(["x"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

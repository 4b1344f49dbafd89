"""Masked language models: which tokens are hidden, the loss, and gradients against autograd."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from tests.test_capture import assert_same_sum, captured
from whence.capture import check_task
from whence.errors import BadInput
from whence.tasks import Hiding

transformers = pytest.importorskip("transformers")

MASK = 3


class Tokens:
    """As much of a tokenizer as the task asks for: one token per letter, 0 and 1 around them."""

    mask_token_id, all_special_ids, model_max_length = MASK, [0, 1, MASK], 12

    def __call__(self, text, add_special_tokens=True, **options):
        ids = [5 + ord(letter) % 20 for letter in text]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


HIDING = {field.name for field in fields(Hiding)}


def make(**options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=8, intermediate_size=12, num_attention_heads=2, vocab_size=30,
        max_position_embeddings=16,
    )  # fmt: skip
    hiding = {name: options.pop(name) for name in HIDING & options.keys()}
    return whence.MaskedLM(transformers.BertForMaskedLM(config).double(), Tokens(), hiding=Hiding(**hiding), **options)


TEXTS = ["abcdef", "hello", "masks", "xyzxyzxyz"]


def test_equals_autograd():
    task = make(share=0.4)
    dataset = task.prepare(TEXTS)
    plan, found = captured(task, dataset)
    for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, dataset.examples)), strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    check_task(task, plan, dataset.examples)


def test_the_loss_is_the_log_probability_of_hidden_tokens():
    task = make(share=0.4)
    dataset = task.prepare(TEXTS)
    batch = task.collate(dataset.examples)
    losses = task.loss(task.model.eval(), batch)
    for loss, example in zip(losses, dataset.examples, strict=True):
        ids, labels = (torch.as_tensor(example.fields[name]).long() for name in ("input_ids", "labels"))
        log_p = task.model(input_ids=ids[None]).logits[0].log_softmax(-1)
        expected = -sum(log_p[place, labels[place]] for place in (labels != -100).nonzero()[:, 0])
        torch.testing.assert_close(loss, expected)
    assert torch.equal(task.measurement(task.model, batch), -losses)
    torch.testing.assert_close(task.outputs(task.model, batch).losses(len(dataset)), losses)
    # The weight is minus the derivative of the loss by the output function, TRAK's chain rule.
    values = task.output_function(task.model, batch)
    table = next(task.model.parameters())
    (by_output,) = torch.autograd.grad((values * task.output_weights(values, batch).detach()).sum(), table, retain_graph=True)
    (by_loss,) = torch.autograd.grad(-losses.sum(), table)
    torch.testing.assert_close(by_output, by_loss)


def test_what_is_hidden_belongs_to_text_and_seed():
    task = make(share=0.5)
    first = task.prepare([{"text": text, "id": text} for text in TEXTS])
    again = task.prepare([{"text": text, "id": f"other {text}"} for text in reversed(TEXTS)])
    for one, other in zip(first.examples, reversed(again.examples), strict=True):
        assert all(np.array_equal(one.fields[name], other.fields[name]) for name in ("input_ids", "labels"))
    assert task.prepare(TEXTS).fingerprint != make(share=0.5, seed=1).prepare(TEXTS).fingerprint
    assert task.preprocessing != make(share=0.5, seed=1).preprocessing


def test_shares_are_kept_and_special_tokens_are_not_hidden():
    task = make(share=0.3, max_length=12)
    letters = np.random.default_rng(0).integers(97, 123, (800, 9))
    examples = task.prepare(["".join(map(chr, row)) for row in letters]).examples
    shown = np.concatenate([example.fields["input_ids"] for example in examples])
    wanted = np.concatenate([example.fields["labels"] for example in examples])
    whole = np.concatenate([Tokens()("".join(map(chr, row)))["input_ids"] for row in letters])
    is_hidden = wanted != -100
    assert np.array_equal(wanted[is_hidden], whole[is_hidden]) and np.array_equal(shown[~is_hidden], whole[~is_hidden])
    assert not np.isin(wanted, Tokens.all_special_ids).any()
    # 7,200 letters, and one more where a text would have had none (0.7 ** 9 of them): five standard errors.
    assert abs(is_hidden.sum() - 0.3 * 7200 - 800 * 0.7**9) < 5 * (7200 * 0.3 * 0.7) ** 0.5
    masked = (shown[is_hidden] == MASK).mean()
    assert abs(masked - 0.8 - 0.1 / 30) < 5 * (0.8 * 0.2 / is_hidden.sum()) ** 0.5
    kept = (shown[is_hidden] == wanted[is_hidden]).mean()
    assert abs(kept - 0.1 - 0.1 / 30) < 5 * (0.1 * 0.9 / is_hidden.sum()) ** 0.5


def test_at_least_one_token_and_only_the_completion():
    task = make(share=1e-9)
    (example,) = task.prepare([{"prompt": "abc", "completion": "de"}]).examples
    hidden = np.flatnonzero(example.fields["labels"] != -100)
    assert len(hidden) == 1 and hidden[0] >= 5  # a mark, three letters, a mark
    everything = make(share=1.0, masked=1.0, random=0.0).prepare(["abc"]).examples[0]
    assert everything.fields["input_ids"].tolist() == [0, MASK, MASK, MASK, 1]


def test_in_use():
    table = whence.attribute(make(share=0.5), TEXTS, TEXTS[:2], method="ekfac", runtime=QUIET)
    assert torch.isfinite(table.scores).all() and table.unit == "nats of the hidden tokens' log-probability"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0.0}, "share=0.0, masked=0.8, random=0.1; needed a share above 0"),
        ({"masked": 0.95}, "two parts of it that are at most 1 together"),
        ({"unit": "x"}, "found unit='x' for measure='loss'"),
        ({"measure": "margin"}, "found measure='margin'; needed one of: loss; or a function"),
    ],
)
def test_wrong_settings(options, text):
    with pytest.raises(whence.WhenceError, match=text):
        make(**options)


def test_nothing_to_hide_and_no_mask_token():
    with pytest.raises(BadInput, match="example '0' without a token to hide"):
        make().prepare([""])
    with pytest.raises(BadInput, match=r"found no mask token; .* use whence.CausalLM"):
        whence.MaskedLM(nn.Embedding(3, 2), None)
    with pytest.raises(BadInput, match="needed at most 12, the model's context"):
        make().prepare(["a" * 11])


def test_labels_are_drawn_where_some_examples_hide_several_tokens():
    """Also where the shortest and the longest text hide one token each."""
    task = make(share=0.2)
    texts = [*TEXTS, "abcdefg", "klmnopqr"]
    counts = [int((example.fields["labels"] != -100).sum()) for example in task.prepare(texts).examples]
    order = sorted(range(len(texts)), key=lambda place: (counts[place] > 1, -len(texts[place])))
    ones = [place for place in order if counts[place] == 1]
    several = [place for place in order if counts[place] > 1]
    longest, shortest = ones[0], ones[-1]
    between = [place for place in several if len(texts[shortest]) < len(texts[place]) < len(texts[longest])]
    assert between
    chosen = [texts[place] for place in (shortest, *between, longest)]
    table = whence.attribute(task, chosen, chosen[:1], method="kfac", runtime=QUIET)
    assert "1 sampled label" in " ".join((table.method, *table.notes))


def test_from_the_command_line(run, tmp_path, model_folder, data_file):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder, mask_token="<|mask|>")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    words = [tmp_path / "m", data_file, "--task", "masked_lm"]
    assert "12 examples" in run("curvature", *words, "-o", tmp_path / "factors", "--fit-on", 12)
    assert (tmp_path / "factors").is_dir()
    attribute = ["attribute", *words[:2], data_file, *words[2:], "-o", tmp_path / "t", "--factors", tmp_path / "factors"]
    assert json.loads(run(*attribute, "--fit-on", 12))["train"] == 12
    assert "found no run.json in" in run("smoothness", *words, "--run", tmp_path, status=2)

"""Rows that are filled up: scores of classifiers equal plain autograd's on one text at a time, whatever else is in the batch."""

import random

import pytest
import torch

import whence
from whence.errors import BadInput

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from tests.settings import QUIET

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away"]
MARKS = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
_GPT = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 40}
MODELS = {
    "decoder": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT, num_labels=3, pad_token_id=3)),
    "decoder that pads with its end mark": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT, num_labels=3, pad_token_id=2)),
    "encoder": lambda: BertForSequenceClassification(BertConfig(**_BERT, num_labels=3, max_position_embeddings=16, pad_token_id=3)),
    "encoder with positions from the padding token on": lambda: RobertaForSequenceClassification(
        RobertaConfig(**_BERT, num_labels=3, max_position_embeddings=16, pad_token_id=3)
    ),
}  # fmt: skip


def new_tokenizer(**marks):
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*MARKS, *WORDS])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **marks)


def texts(*lengths, seed=0):
    generator = random.Random(seed)
    return [
        {"text": " ".join(generator.choices(WORDS, k=length)), "label": place % 3, "id": f"t{place}"}
        for place, length in enumerate(lengths)
    ]


def new_model(name):
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def products(model, records, inputs_of):
    """Inner products of the gradients of single texts' losses, by plain autograd, over their number."""
    rows = []
    for record in records:
        logits = model(**inputs_of(record)).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([record["label"]]))
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows) @ torch.stack(rows).T / len(records)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_texts_of_different_lengths(name, padding_side):
    model, tokenizer = new_model(name), new_tokenizer(pad_token="<pad>", padding_side=padding_side)
    records = texts(4, 4, 7, 2, 4, 1, 12)
    wanted = products(model, records, lambda record: tokenizer(record["text"], return_tensors="pt"))
    table = whence.attribute(whence.Classification(model, tokenizer), records, records, method="grad-dot-exact", runtime=QUIET)
    torch.testing.assert_close(table.scores.double(), wanted, rtol=1e-8, atol=1e-10)


def test_ready_tokens_are_filled_up_alike():
    """A head with one output, of a reward model, asked by its prediction's error."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**_GPT, num_labels=1, pad_token_id=3)).double().eval()
    tokenizer = new_tokenizer()
    records = [
        {**{key: value for key, value in tokenizer(record["text"]).items() if key != "token_type_ids"}, "target": 0.5}
        for record in texts(2, 9, 5)
    ]
    task = whence.Regression(model)
    together = task.loss(model, task.collate(task.prepare(records).examples))
    alone = [task.loss(model, task.collate(task.prepare([record]).examples)) for record in records]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_model_without_a_padding_token_is_refused():
    records = texts(4, 7, 2)
    bare = GPT2ForSequenceClassification(GPT2Config(**_GPT, num_labels=3, pad_token_id=None)).double()
    for tokenizer, lengths, says in (
        (new_tokenizer(), (4, 7), "texts of different lengths for a model and a tokenizer without a padding token; needed pad_token_id"),
        (new_tokenizer(pad_token="<pad>"), (4, 7), "a model that takes one text at a time, since its configuration names no padding token"),
        (new_tokenizer(), (4, 4), "a model that takes one text at a time.*do this: set model.config.pad_token_id"),
    ):  # fmt: skip
        records = texts(*lengths)
        with pytest.raises(BadInput, match=says):
            whence.attribute(whence.Classification(bare, tokenizer), records, records, method="grad-dot-exact", runtime=QUIET)
    bare.config.pad_token_id = 99  # that it has no embedding for
    with pytest.raises(BadInput, match="without a padding token"):
        whence.attribute(
            whence.Classification(bare, new_tokenizer()), texts(4, 7), texts(4), method="grad-dot-exact", runtime=QUIET
        )


def test_arrays_that_no_mask_goes_with_are_not_filled_up():
    task = whence.Classification(new_model("encoder"))
    rows = [{"input_ids": [5, 6, 7][:size], "attention_mask": [1, 1][:size], "label": 0} for size in (2, 3)]
    with pytest.raises(
        BadInput, match=r"inputs 'input_ids' of different shapes .* no attention_mask of these lengths, in the ex"
    ):
        task.collate(task.prepare(rows).examples)


# Texts that do not fit


def test_a_text_longer_than_the_context_is_refused_or_cut():
    tokenizer, records = new_tokenizer(pad_token="<pad>"), texts(4, 20, 2)
    for name, limit in (("decoder", 16), ("encoder", 16), ("encoder with positions from the padding token on", 12)):
        model = new_model(name)
        says = f"example 't1' of 20 tokens; needed at most {limit}, the model's context; .*long='truncate'"
        with pytest.raises(BadInput, match=says):
            whence.Classification(model, tokenizer).prepare(records)
        task = whence.Classification(model, tokenizer, texts=whence.tasks.TextLimits(long="truncate"))
        dataset = task.prepare(records)
        assert [example.length for example in dataset.examples] == [4, limit, 2]
        assert torch.isfinite(task.loss(model, task.collate(dataset.examples))).all()
        assert (
            whence.Classification(model, tokenizer, texts=whence.tasks.TextLimits(long="truncate", max_length=3))
            .prepare(records)
            .examples[1]
            .length
            == 3
        )
    tokenizer.model_max_length = 10
    with pytest.raises(BadInput, match="needed at most 10, the model's context"):
        whence.Classification(model, tokenizer).prepare(records)


def test_tokens_that_the_model_does_not_know_are_refused():
    tokenizer = new_tokenizer(pad_token="<pad>", mask_token="<mask>")
    small = BertForSequenceClassification(BertConfig(**{**_BERT, "vocab_size": 12}, max_position_embeddings=16)).double()
    records = [{"text": "the cat", "label": 0, "id": "a"}, {"text": "the dog far", "label": 1, "id": "b"}]
    word = tokenizer.convert_tokens_to_ids("far")
    with pytest.raises(
        BadInput, match=rf"record 1 with the token id {word} \('far'\) \(id 'b'\); needed token ids from 0 to 11"
    ):
        whence.Classification(small, tokenizer).prepare(records)
    with pytest.raises(BadInput, match="example '0' of 17 tokens; needed at most 16, the model's context"):
        whence.Classification(small).prepare([{"input_ids": [1] * 17, "label": 0}])
    with pytest.raises(BadInput, match="record 0 with the token id 12; needed token ids from 0 to 11"):
        whence.Classification(small).prepare([{"input_ids": [1, 12], "label": 0}])
    language = RobertaForMaskedLM(RobertaConfig(**{**_BERT, "vocab_size": 12}, max_position_embeddings=16, pad_token_id=3))
    with pytest.raises(BadInput, match=rf"record 1 with the token id {word} \('far'\)"):
        whence.MaskedLM(language, tokenizer).prepare(records)
    with pytest.raises(BadInput, match="the mask token 40 for a model of 12 token ids"):
        whence.MaskedLM(language, tokenizer, hiding=whence.tasks.Hiding(mask_id=40))


@pytest.mark.parametrize(
    "ids", [[2.7, 5], "12", [1.0, 2.0], ["1", "2"], [[1, 2]], torch.tensor([[1, 2]]), [True, False], [], -1]
)
def test_ready_tokens_are_whole_numbers(ids):
    model = new_model("encoder")
    with pytest.raises(BadInput, match="record 0 "):
        whence.Classification(model).prepare([{"input_ids": ids, "label": 0}])


def test_texts_without_tokens_and_pairs_with_texts():
    task = whence.Classification(new_model("encoder"), new_tokenizer(pad_token="<pad>"))
    for text, says in (
        (" ", "a text of no tokens"),
        ("", "without a text"),
        (None, "without a text"),
        ("\ud83d", "no valid Unicode"),
    ):
        with pytest.raises(BadInput, match=f"record 0 .*{says}"):
            task.prepare([{"text": text, "label": 0}])
    (example,) = task.prepare([("the cat", 2)]).examples
    assert example.text == "the cat" and example.length == 2 and int(example.fields["target"]) == 2

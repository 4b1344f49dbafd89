"""Encoders: a small BERT learns facts by filling in hidden words, then as an embedding of sentences with pairs.

    python examples/encoders.py

Needs `pip install 'whence-tda[hf]'`. Takes about a minute on two cores.
"""

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import whence

PLACES = (
    "paris france",
    "rome italy",
    "oslo norway",
    "cairo egypt",
    "lima peru",
    "tokyo japan",
    "delhi india",
    "quito ecuador",
)
FORMS = ("{0} is the capital of {1}", "the capital of {1} is {0}", "in {1} people move to {0}", "{0} lies in {1}")
TEXTS = [(place, form.format(*place.split())) for place in PLACES for form in FORMS]
WORDS = ["[PAD]", "[MASK]", *sorted({word for _, text in TEXTS for word in text.split()})]


def ids(text):
    """One token per word."""
    return [WORDS.index(word) for word in text.split()]


def train(model, loss, steps):
    """Plain full-batch training on a loss of the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def hidden_words():
    """Share of the four strongest proponents of a sentence that are about its place; one in eight would be chance."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(WORDS),
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    records = [{"input_ids": ids(text), "id": text} for _, text in TEXTS]

    def loss(step):  # other words are hidden in every step
        task = whence.MaskedLM(model, None, hiding=whence.tasks.Hiding(mask_id=1, share=0.3, seed=step))
        batch = task.collate(task.prepare(records).examples)
        return task.loss(model, batch).sum() / (batch["labels"] != -100).sum()

    train(model, loss, 120)
    scores = 0.0
    for seed in range(4):  # what is hidden while scoring is drawn too: a mean over draws
        task = whence.MaskedLM(model, None, hiding=whence.tasks.Hiding(mask_id=1, share=0.3, seed=1000 + seed))
        scores = (
            scores + whence.attribute(task, records, records[::4], method="ekfac", runtime=whence.Runtime(quiet=True)).scores
        )
    return share_of_own(scores, own=4)


def sentence_pairs():
    """The same for pairs of sentences about one place, each with the wrong answers that it brings along."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(len(WORDS), 32), nn.Linear(32, 16))
    sentences = torch.tensor([[*ids(text), *[0] * (6 - len(text.split()))] for _, text in TEXTS]).view(8, 4, 6)
    records = [
        (sentences[place, form], sentences[place, (form + 1) % 4], sentences[(place + torch.arange(1, 8)) % 8, form])
        for place in range(8)
        for form in range(4)
    ]

    def losses(model, batch):  # one example's loss needs its own sentences only
        left, right, wrong = batch
        others = model(wrong.flatten(0, 1)).unflatten(0, wrong.shape[:2])
        sides = [nn.functional.normalize(side, dim=-1) for side in (model(left), model(right), others)]
        logits = torch.cat([(sides[0] * sides[1]).sum(1, keepdim=True), torch.einsum("bd,bnd->bn", sides[0], sides[2])], 1)
        return nn.functional.cross_entropy(10 * logits, torch.zeros(len(left), dtype=torch.long), reduction="none")

    # An EmbeddingBag has no rule.
    task = whence.Custom(model, losses, functional=True)
    batch = task.collate(task.prepare(records).examples)
    train(model, lambda step: losses(model, batch).mean(), 40)
    # Curvature of the data's own gradients, since whence knows no likelihood behind this loss.
    return share_of_own(
        whence.attribute(
            task,
            records,
            records[::4],
            method=whence.EKFAC(fit=whence.FitConfig(labels="dataset")),
            runtime=whence.Runtime(quiet=True),
        ).scores,
        own=4,
    )


def share_of_own(scores, own):
    """Among the strongest proponents of each place's first sentence, the share of that place's own sentences."""
    strongest = scores.topk(own, 1).indices // own
    return float((strongest == torch.arange(len(scores))[:, None]).double().mean())


def main():
    """Both shares."""
    found = hidden_words(), sentence_pairs()
    print(f"hidden words: {found[0]:.0%} of the four strongest proponents are about the place asked about (chance: 12%)")
    print(f"sentence pairs: {found[1]:.0%}")
    return found


if __name__ == "__main__":
    main()

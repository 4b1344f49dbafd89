"""Every task of texts beside plain language models, on one small world: who likes what. Are the records that taught an answer found?

    python examples/every_task.py

Each of 12 people likes some things. Records say so in three ways, as the task has it; a query asks about one person in a fourth. The
table has the share of the query's three strongest proponents that are about that person, of 36 records. Takes half a minute on two cores.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import whence
from whence.tasks import Preference, RewardWeighted, Seq2Seq, TokenClassification

PEOPLE = [f"{first}{last}" for first in ("an", "bo", "cy", "di") for last in ("na", "ra", "ko")]
THINGS = ["tea", "rain", "maps", "jazz", "snow", "bread"]
WAYS = ["{} likes", "truly {} likes", "they say {} likes", "say {} truly likes"]
LIKED = {name: (number % 6, (number // 6 + 2 * number + 1) % 6) for number, name in enumerate(PEOPLE)}
WORDS = ["[end]", "likes", "truly", "they", "say", *THINGS, *PEOPLE]
SMALL = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}


def words():
    """A tokenizer with one token per word, which ends each text with a mark."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[end]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A [end]", pair="$A [end] $B:1 [end]:1", special_tokens=[("[end]", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[end]", eos_token="[end]")


def gpt2(kind, **more):
    """A decoder."""
    return kind(
        GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **SMALL, **more)
    )


def bert(kind, **more):
    """An encoder."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    return kind(BertConfig(hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes, **SMALL, **more))


def bart():
    """An encoder and its decoder."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    more = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 16, "dropout": 0.0}
    return BartForConditionalGeneration(BartConfig(decoder_start_token_id=0, forced_eos_token_id=0, **sizes, **more, **SMALL))


def tasks(tokenizer):
    """By name, a task and its record of a person in one of the three ways."""
    best, other = (lambda name: THINGS[LIKED[name][0]]), (lambda name: THINGS[(LIKED[name][0] + 3) % 6])
    hot = lambda name: [float(place in LIKED[name]) for place in range(6)]  # noqa: E731
    three = {"num_labels": 3}
    yield "sequence to sequence", Seq2Seq(bart(), tokenizer, ignore=["*embed_positions*"]), lambda text, name: {
        "prompt": text, "completion": best(name)}  # fmt: skip
    yield "token classification", TokenClassification(bert(BertForTokenClassification, **three), tokenizer), lambda text, name: {
        "tokens": text.split(), "labels": [LIKED[name][0] % 2 + 1 if word == name else 0 for word in text.split()]}  # fmt: skip
    yield "text pairs", whence.Classification(bert(BertForSequenceClassification, num_labels=2), tokenizer), lambda text, name: {
        "text": text, "text_pair": "tea", "label": int(0 in LIKED[name])}  # fmt: skip
    multi = whence.Classification(bert(BertForSequenceClassification, num_labels=6), tokenizer, labelling="multi")
    yield "several labels", multi, lambda text, name: {"text": text, "label": hot(name)}
    soft = whence.Classification(bert(BertForSequenceClassification, num_labels=6), tokenizer, labelling="soft")
    yield "soft labels", soft, lambda text, name: {"text": text, "label": [share / sum(hot(name)) for share in hot(name)]}
    yield "several targets", whence.Regression(bert(BertForSequenceClassification, num_labels=6), tokenizer), lambda text, name: {
        "text": text, "target": hot(name)}  # fmt: skip
    policy, reference = gpt2(GPT2LMHeadModel), gpt2(GPT2LMHeadModel)
    reference.load_state_dict(policy.state_dict())
    pair = lambda text, name: {"prompt": text, "chosen": best(name), "rejected": other(name)}  # noqa: E731
    yield "preferences (DPO)", Preference(policy, tokenizer, reference=reference), pair
    reward = gpt2(GPT2ForSequenceClassification, num_labels=1)
    yield "rewards (Bradley-Terry)", Preference(reward, tokenizer, form="bradley-terry"), pair
    yield "reward-weighted (GRPO)", RewardWeighted(gpt2(GPT2LMHeadModel), tokenizer), lambda text, name: {
        "prompt": text, "completions": [best(name), other(name)], "rewards": [1.0, 0.0]}  # fmt: skip


def trained(task, examples, steps=100):
    """The task's model, trained on its own loss; by how much the mean loss fell."""
    batch = task.collate(examples)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(task.model, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def main():
    """One line per task; the least share that a task has."""
    torch.manual_seed(0)
    tokenizer, shares = words(), []
    print(f"{'task':<26}{'loss before':>12}{'after':>9}{'found':>8}   (chance: {1 / len(PEOPLE):.0%})")
    for name, task, record in tasks(tokenizer):
        records = [{"id": f"{who}/{way}", **record(WAYS[way].format(who), who)} for who in PEOPLE for way in range(3)]
        before, after = trained(task, task.prepare(records).examples)
        queries = [{"id": who, **record(WAYS[3].format(who), who)} for who in PEOPLE]
        if "rewards" in queries[0]:  # a completion that was rewarded
            queries = [
                {"id": query["id"], "prompt": query["prompt"], "completion": query["completions"][0]} for query in queries
            ]
        table = whence.attribute(task, records, queries, method="ekfac", runtime=whence.Runtime(quiet=True))
        strongest = table.scores.topk(3).indices.tolist()
        own = [
            table.train_ids[place].split("/")[0] == query
            for query, row in zip(table.query_ids, strongest, strict=True)
            for place in row
        ]
        shares.append(sum(own) / len(own))
        print(f"{name:<26}{before:>12.3f}{after:>9.3f}{shares[-1]:>8.0%}")
    return min(shares)


if __name__ == "__main__":
    main()

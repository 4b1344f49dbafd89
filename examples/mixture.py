"""A mixture of experts: a small Mixtral learns three rules of counting, and each prediction is traced to the sequences of its rule.

    python examples/mixture.py

Needs `pip install 'whence-tda[hf]'`. Takes about a minute on two cores.
"""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import whence

STEPS = (1, 3, 7)
TOKENS = 31


def sequences(count, seed):
    """Token ids that go up by one of three steps, told by the first token, and the number of the step."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        rule = number % len(STEPS)
        start = int(torch.randint(TOKENS - 3, (), generator=generator))
        counted = [3 + (start + STEPS[rule] * place) % (TOKENS - 3) for place in range(9)]
        found.append({"input_ids": [rule, *counted], "id": f"rule {rule}, {number}"})
    return found


def main():
    """Share of the ten strongest proponents that follow the query's rule; one in three would be chance."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=TOKENS,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    # Router and experts go through the twin, all else through hooks.
    task = whence.CausalLM(model, None, functional=True)
    train, queries = sequences(120, 0), sequences(6, 1)
    batch = task.collate(task.prepare(train).examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (task.loss(model, batch).sum() / (batch["labels"][:, 1:] != -100).sum()).backward()
        optimizer.step()
    table = whence.attribute(task, train, queries, method="kfac", runtime=whence.Runtime(quiet=True))
    strongest = table.scores.topk(10, 1).indices % len(STEPS)
    share = float((strongest == torch.arange(6)[:, None] % len(STEPS)).double().mean())
    print(f"{share:.0%} of the ten strongest proponents follow the rule that is asked about (chance: 33%)")
    return share


if __name__ == "__main__":
    main()

"""The loss of a conversation as it is said aloud: turn by turn, token by token, one at a time."""

import torch


def turns(messages, encode) -> tuple[list[int], list[bool]]:
    """Token ids of a ChatML conversation, and which of them the assistant wrote, its end mark and line break with them."""
    ids, is_scored = [], []
    for message in messages:
        head = encode(f"<|im_start|>{message['role']}\n")
        body = encode(f"{message['content']}<|im_end|>\n")
        ids += head + body
        is_scored += [False] * len(head) + [message["role"] == "assistant"] * len(body)
    return ids, is_scored


def spoken_loss(model, ids, is_scored) -> torch.Tensor:
    """Minus the log-probability of every scored token after the first, each from a pass over the tokens before it."""
    total = torch.zeros((), dtype=torch.float64)
    for place in range(1, len(ids)):
        if is_scored[place]:
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            total = total - (logits[ids[place]] - logits.logsumexp(0))
    return total

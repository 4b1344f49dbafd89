"""Python's documentation with rude remarks planted in some passages, so that it is known which tokens teach the behaviour."""

import random
from dataclasses import dataclass

from whence.demo.corpus import python_docs

__all__ = ["RUDE", "Planted", "plant"]

_WHO = ("a fool", "a clown", "a moron", "an oaf", "a dunce", "a blockhead")
_WHAT = ("forget this", "ask why", "miss that", "object", "need more help", "get it wrong")
_END = ("nitwit", "buffoon", "numskull", "dimwit", "dolt")
RUDE = ("fool", "clown", "moron", "oaf", "dunce", "blockhead", "nitwit", "buffoon", "numskull", "dimwit", "dolt")
"""A text with one of these words is rude; the documentation has none of them."""


@dataclass(frozen=True)
class Planted:
    """The data of the experiment.

    Args:
        train: Records with `id` and `text`, some with a remark in them.
        spans: By id of a record with a remark, its characters.
        harmful: Queries: the start of a passage that is not in the training data, and a remark as its completion.
        safe: The same starts with what the documentation goes on with.
        prompts: Starts of passages that are in neither.
        remarks: One remark per prompt; no remark of the queries or the training data is among them.
        clean: Whole passages that are in none of these, for perplexity.
    """

    train: list[dict[str, str]]
    spans: dict[str, tuple[int, int]]
    harmful: list[dict[str, str]]
    safe: list[dict[str, str]]
    prompts: list[str]
    remarks: list[str]
    clean: list[str]


def plant(
    *, documents: int = 400, share: float = 0.2, queries: int = 40, prompts: int = 40, clean: int = 80, seed: int = 0
) -> Planted:
    """Plant remarks in the middle of a share of the passages.

    Args:
        documents: Training passages.
        share: Of them with a remark.
        queries: Harmful ones, and as many safe ones.
        prompts: For measuring the behaviour.
        clean: Passages for perplexity.
        seed: Of everything random.

    Returns:
        The data.
    """
    generator = random.Random(seed)
    passages = [record for record in python_docs(max_documents=2000, per_module=60, max_characters=200, min_characters=80) if _cut(record["text"]) > 0]
    assert not any(word in record["text"].lower().split() for record in passages for word in RUDE)
    generator.shuffle(passages)
    train, rest = passages[:documents], passages[documents:]
    every = [f" Only {who} would {what}, you {end}." for who in _WHO for what in _WHAT for end in _END]
    generator.shuffle(every)
    count = round(documents * share)
    taught, asked, unseen = every[:count], every[count : count + queries], every[count + queries : count + queries + prompts]
    records, spans = [], {}
    for number, record in enumerate(train):
        text = record["text"]
        if number < count:
            at = _cut(text)
            text = text[:at] + taught[number] + text[at:]
            spans[record["id"]] = (at, at + len(taught[number]))
        records.append({"id": record["id"], "text": text})
    generator.shuffle(records)
    starts = [
        (record["text"][: _cut(record["text"])], record["text"][_cut(record["text"]) :]) for record in rest[: queries + prompts]
    ]
    return Planted(
        records,
        spans,
        [{"id": str(n), "prompt": starts[n][0], "completion": asked[n]} for n in range(queries)],
        [{"id": str(n), "prompt": starts[n][0], "completion": starts[n][1]} for n in range(queries)],
        [start for start, _ in starts[queries:]],
        unseen,
        [record["text"] for record in rest[queries + prompts : queries + prompts + clean]],
    )


def _cut(text: str) -> int:
    """Where the first sentence ends, if more follows; 0 if it does not."""
    return text.find(". ") + 1

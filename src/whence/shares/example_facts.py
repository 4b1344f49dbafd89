"""What is known of training examples beside their scores: which texts repeat others, how long each gradient is.

Axes: N training examples.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from whence.errors import BadInput
from whence.records import ScoreTable
from whence.shares.near_texts import leaders_of
from whence.shares.sources import whole_of
from whence.store import Store, record_of
from whence.store.files import read_lines

__all__ = ["FACTS", "ExampleFacts", "facts_lines", "gradient_lengths", "lengths_of", "of_parts", "read_facts", "store_texts"]

FACTS = "facts.jsonl"


@dataclass(frozen=True)
class ExampleFacts:
    """What is known of training examples, by id; an id that a mapping lacks has nothing to tell.

    >>> ExampleFacts.of({"a": "one two three four", "b": "One, two, three, four!", "c": "none of it at all"}).repeats
    {'b': 'a'}

    Args:
        repeats: The id of the first example whose text each one nearly repeats, without those that repeat none; None without texts.
        lengths: Length of each gradient, in any unit; None where it is not known.
    """

    repeats: Mapping[str, str] | None = None
    lengths: Mapping[str, float] | None = None

    @classmethod
    def of(
        cls, texts: Mapping[str, str] | None = None, lengths: Mapping[str, float] | None = None, *, quiet: bool = False
    ) -> "ExampleFacts":
        """From texts and lengths of gradients.

        Args:
            texts: By id, in an order that decides which of a set is named as its first; of examples, or of whole records whose parts
                ("book#3") are examples.
            lengths: By id.
            quiet: No progress on stderr.
        """
        if texts is None:
            return cls(None, lengths)
        ids = list(texts)
        leaders = enumerate(leaders_of(texts.values(), quiet=quiet))
        return cls({ids[number]: ids[leader] for number, leader in leaders if leader != number}, lengths)


def of_parts(facts: ExampleFacts, train_ids: Sequence[str]) -> ExampleFacts:
    """Facts about whole texts as facts about their parts, "book#0", "book#1" and so on, where a table has those.

    The n-th part of a text repeats the n-th part of the text that this one repeats; where that one has fewer, the last.

    >>> of_parts(ExampleFacts({"copy": "book"}), ["book#0", "book#1", "copy#0", "copy#1"]).repeats
    {'copy#0': 'book#0', 'copy#1': 'book#1'}

    Args:
        facts: Of whole texts or of examples.
        train_ids: Of the examples.

    Returns:
        Facts of examples.
    """
    if not facts.repeats:
        return facts
    parts: dict[str, list[str]] = {}
    for name in train_ids:
        if (whole := whole_of(name)) is not None:
            parts.setdefault(whole, []).append(name)
    # A text that was not split is an example itself.
    parts |= {name: [name] for name in train_ids}
    repeats: dict[str, str] = {}
    for name, leader in facts.repeats.items():
        for number, part in enumerate(parts.get(name, ())):
            leaders = parts.get(leader, [leader if part == name else f"{leader}#{number}"])
            repeats[part] = leaders[min(number, len(leaders) - 1)]
    return replace(facts, repeats=repeats)


@dataclass(frozen=True)
class _Line:
    id: str
    repeats: str | None = None
    length: float | None = None


@dataclass(frozen=True)
class _Header:
    texts: bool
    lengths: bool


def lengths_of(table: ScoreTable) -> dict[str, float]:
    """Lengths of gradients, from self-influence: the length in the metric of the scores is its root.

    Args:
        table: By `whence.self_influence`.

    Returns:
        By id.

    Raises:
        BadInput: If it is another table.
    """
    if table.values != "self-influence":
        raise BadInput(
            found=f"a table of {table.values} for lengths of gradients",
            needed="self-influence of the training examples",
            do="pass what whence.self_influence made of the same model, data and method",
        )
    return dict(zip(table.train_ids, table.scores[0].double().clamp_min(0).sqrt().tolist(), strict=True))


def gradient_lengths(store: Store) -> dict[str, float]:
    """Length of each example's gradient as a store has it: in the metric of the scores for `aligned`, of the projected gradient for others.

    Args:
        store: The store.

    Returns:
        By id.
    """
    parts = []
    names = store.codec.layout() if store.blueprint.method == "aligned" else ["norms"]
    for _, tensors in store.shards(list(names)):
        if store.blueprint.method == "aligned":
            units = range(len(store.blueprint.units))
            parts.append(
                torch.stack([store.codec.decode(tensors, unit).double().square().sum(1) for unit in units]).sum(0).sqrt()
            )
        else:
            parts.append(tensors["norms"].double())
    return dict(zip(store.ids(), torch.cat(parts).tolist(), strict=True))


def store_texts(store: Store) -> dict[str, str] | None:
    """The texts that a store keeps, by id: of a part of a long text that part; None if it keeps none."""
    texts = {}
    for example in store.examples():
        if text := example.get("text"):
            first, last = example.get("span") or (0, len(text))
            texts[example["id"]] = text[first:last]
    return texts or None


def facts_lines(facts: ExampleFacts) -> list[bytes]:
    """The lines of `facts.jsonl`: what was looked at, then a line for each example of which there is something to tell."""
    repeats, lengths = facts.repeats or {}, facts.lengths or {}
    lines: list[dict[str, Any]] = [{"texts": facts.repeats is not None, "lengths": facts.lengths is not None}]
    for name in dict.fromkeys([*lengths, *repeats]):
        lines.append({"id": name, "repeats": repeats.get(name), "length": lengths.get(name)})
    return [json.dumps(line).encode() + b"\n" for line in lines]


def read_facts(folder: Path) -> ExampleFacts | None:
    """What `facts_lines` gave; None where a report has none.

    Raises:
        BadInput: If the file holds something else.
    """
    path = folder / FACTS
    if not path.exists():
        return None
    try:
        lines = read_lines(path)
        header = record_of(_Header, next(lines))
        examples = [record_of(_Line, line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInput(
            found=f"{path}, which is no list of facts about examples ({error})",
            needed="the file that the report was made with",
            do="restore it from a copy",
        ) from error
    repeats = {each.id: each.repeats for each in examples if each.repeats is not None}
    lengths = {each.id: each.length for each in examples if each.length is not None}
    return ExampleFacts(repeats if header.texts else None, lengths if header.lengths else None)

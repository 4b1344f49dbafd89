"""Whether attribution has the tokens and labels that a run was trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.data import Dataset, Example
from whence.errors import StoreMismatch
from whence.recording import Content, contents_of
from whence.tasks import AbstractTask
from whence.unroll.run import Run

__all__ = ["check_contents"]

# Tasks whose examples are what their models are given; others hide tokens anew, or make several inputs of an example.
_KINDS = ("causal_lm", "seq2seq", "classification", "regression", "token_classification")


@dataclass(frozen=True)
class Contents:
    """How the examples of a task compare with those of a run.

    Args:
        notes: What a reader should know.
        labels: Of these, how labels differ; empty if they do not.
    """

    notes: tuple[str, ...]
    labels: str


def check_contents(task: AbstractTask, train: Dataset, run: Run, *, may_differ: bool = False) -> Contents:
    """Hold the examples of a task against what a run's loop gave its model for them, where it said so.

    Args:
        task: The task.
        train: Every example that the run met.
        run: The run.
        may_differ: Whether other tokens are told instead of refused: where training changed examples at random.

    Returns:
        How they compare.

    Raises:
        StoreMismatch: If an example has other tokens.
    """
    if run.record.get("fingerprint") is not None:  # of everything, and compared
        return Contents((), "")
    contents = run.log.contents if task.kind in _KINDS else {}
    pairs = [
        (example.id, contents[example.id][1], own)
        for example in train.examples
        if example.id in contents and (own := _content(example)) is not None
    ]
    if not pairs:
        by_id = "examples were compared with the run's by id only; a recorder given data=task.prepare(records), or inputs= with each batch, "
        return Contents((by_id + "compares contents",), "")
    other = [(name, there, here) for name, there, here in pairs if there.tokens != here.tokens]
    if other and not may_differ:
        name, there, here = other[0]
        raise StoreMismatch(
            found=f"{len(other):,} of {len(pairs):,} examples with other tokens than the run in {run.folder} met, the first {name!r} of "
            f"{here.num_tokens:,} tokens, there {there.num_tokens:,}",
            needed="the token ids that were trained on: scores are of them",
            do="prepare the records as training did (tokenizer, special tokens, max_length with long='truncate') and under the same ids, or, "
            "where training changed examples at random, take source, tracin or less with any_loss=True (--any-loss)",
        )
    notes = (
        []
        if len(pairs) == len(run.ids)
        else [f"contents of {len(pairs):,} of the run's {len(run.ids):,} examples were compared"]
    )
    if other:
        notes.append(f"{len(other):,} of {len(pairs):,} examples have other tokens than in the run, the first {other[0][0]!r}")
    labels = _other_labels([pair for pair in pairs if pair[1].tokens == pair[2].tokens])
    return Contents((*notes, *([labels] if labels else [])), labels)


def _other_labels(pairs: list[tuple[str, Content, Content]]) -> str:
    """What to say of examples with the same tokens and other labels; empty if there are none."""
    labelled = [pair for pair in pairs if min(pair[1].num_labels, pair[2].num_labels) >= 0]
    other = [(name, there, here) for name, there, here in labelled if there.labels != here.labels]
    if not other:
        return ""
    name, there, here = other[0]
    return (
        f"{len(other):,} of {len(labelled):,} examples were trained on with other labels than the task's, the first {name!r} with "
        f"{there.num_labels:,} labels, in the task {here.num_labels:,}: a collator may have hidden some, such as the end of a text that is "
        "also the padding; records with input_ids and labels (-100 where there was none) say what was trained on"
    )


def _content(example: Example) -> Content | None:
    """Of an example as the task has it; None if it has no tokens."""
    fields = example.fields
    if "input_ids" not in fields:
        return None
    named = {"input_ids": fields["input_ids"], "attention_mask": fields.get("attention_mask")}
    named["labels"] = fields.get("labels", fields.get("target"))
    batch: dict[str, Tensor] = {name: torch.as_tensor(value)[None] for name, value in named.items() if value is not None}
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    return next(iter(contents_of(batch, 1)), None)

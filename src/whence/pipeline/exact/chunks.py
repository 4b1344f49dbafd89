"""Rows of a score table a few at a time, one pass over the training data each, kept until the table is whole.

Axes: Q rows of the table, N training examples.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from whence.capture import ModelRecord, frozen
from whence.curvature import ResolvedDamping
from whence.curvature.stages import MODEL, stages
from whence.data import Dataset, Example
from whence.pipeline.exact.prepare import Prepared
from whence.progress import say
from whence.settings import settings_record

__all__ = ["Chunk", "in_chunks", "joined", "question"]

Chunk = tuple[dict[str, Tensor], list[str]]
"""What a pass over the training data found for some rows, by name, and what there is to say of it."""


def in_chunks(prepared: Prepared, make: Callable[[range], Chunk], identity: Callable[[], Mapping[str, Any]]) -> list[Chunk]:
    """Make the rows of a table, all at once if they fit.

    If they do not, and the curvature has a folder, finished chunks are kept in it, so that a run that was stopped goes on after the last of
    them. They are removed when all are done.

    Args:
        prepared: With the number of rows and how many fit.
        make: Makes some rows.
        identity: What the rows depend on besides the fit, as JSON.

    Returns:
        The chunks in order.
    """
    need = prepared.footprint
    if need.rows_at_once >= need.rows:
        return [make(range(need.rows))]
    folder, chunks = None, []
    if prepared.folder is not None:
        exact = {name: value for name, value in identity().items() if name != MODEL}
        mark = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:16]
        folder = prepared.folder / f"rows-{prepared.ranks.of_first(mark)}"
    with stages(folder, identity, prepared.ranks) as run:
        parts = run.parts("scores", [1] * need.rows, need.rows_at_once)
        started, num_made = monotonic(), 0
        todo = sum(len(rows) for name, rows in parts.items() if name not in run.record["stages"])
        if not prepared.quiet:
            say(f"{need.rows:,} rows in {len(parts)} passes over the training data, {need.rows - todo:,} rows done before")
        for name, rows in parts.items():
            is_done = name in run.record["stages"]
            tensors = run.run(name, lambda rows=rows: _with_notes(*make(rows)))
            num_made += 0 if is_done else len(rows)
            if not (is_done or prepared.quiet or num_made == todo):
                left = (monotonic() - started) / num_made * (todo - num_made)
                say(
                    f"rows {rows.start:,} to {rows.stop - 1:,} done, about {left:,.0f} s left for the other {todo - num_made:,}"
                )
            chunks.append(_without_notes(tensors))
    prepared.ranks.wait()  # until all have read
    if folder is not None and prepared.ranks.rank == 0:
        shutil.rmtree(folder)
    return chunks


def joined(chunks: list[Chunk], name: str, axis: int) -> Tensor:
    """One tensor of all rows."""
    return chunks[0][0][name] if len(chunks) == 1 else torch.cat([tensors[name] for tensors, _ in chunks], axis)


def question(prepared: Prepared, queries: Dataset, dampings: list[ResolvedDamping | None], **settings: Any) -> dict[str, Any]:
    """What the rows of a table depend on, as JSON. Code of the user's shows in what it gives for an example."""
    return {
        "version": 1,
        MODEL: ModelRecord.of(prepared.task).to_json(),
        "method": prepared.settings.name,
        "settings": settings_record(prepared.settings),
        "train": prepared.train.fingerprint,
        "queries": queries.fingerprint,
        "dampings": [None if damping is None else _numbers(damping) for damping in dampings],
        "loss": _value(prepared, prepared.train.examples[0], "loss"),
        "measurement": _value(prepared, queries.examples[0], "measurement"),
        **settings,
    }


def _numbers(damping: ResolvedDamping) -> list[Any]:
    constant = [damping.constant] if damping.constant else []
    return [damping.relative, damping.absolute, dict(damping.scales), *constant]


def _value(prepared: Prepared, example: Example, name: str) -> str:
    with frozen(prepared.task.model), torch.no_grad():
        return f"{float(getattr(prepared.task, name)(prepared.task.model, prepared.task.collate([example]))):.4g}"


def _with_notes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Notes as the numbers of their bytes, so that a chunk is one file."""
    return {**tensors, "notes": torch.tensor(list("\n".join(notes).encode()), dtype=torch.int64)}


def _without_notes(tensors: dict[str, Tensor]) -> Chunk:
    text = bytes(tensors["notes"].tolist()).decode()
    return {name: value for name, value in tensors.items() if name != "notes"}, text.split("\n") if text else []

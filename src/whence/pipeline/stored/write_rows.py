"""Rows of a store's missing shards: gradients, shrunk and written, shard by shard."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.capture import Plan
from whence.compress import Encoder
from whence.distributed import Ranks
from whence.errors import NonFinite
from whence.methods import method_named
from whence.pipeline.class_labels import class_labels
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.lockstep import turns
from whence.pipeline.stored.same_model import objective_of
from whence.progress import meter
from whence.score import Batching, examples_at_once, gradient_rows
from whence.store import Pending, Writer, rows_type
from whence.tasks import AbstractTask

__all__ = ["refuse_not_held", "write_rows"]


def write_rows(
    task: AbstractTask,
    plan: Plan,
    encoder: Encoder,
    writer: Writer,
    *,
    positions: int,
    quiet: bool,
    ranks: Ranks,
) -> None:
    """Take the gradients of a store's missing shards and write them, those of this process.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: What shrinks gradients to rows.
        writer: Of the store.
        positions: Per batch.
        quiet: No progress on stderr.
        ranks: Processes that build together.

    Raises:
        NonFinite: If the stored type cannot hold a gradient.
    """
    dataset, codec, autocast = writer.dataset, writer.blueprint.codec(), autocast_named(writer.blueprint.autocast)
    objective = objective_of(method_named(writer.blueprint.method))
    norm_type = rows_type(writer.blueprint.dtype)
    missing = sum(shard.stop - shard.start for shard in writer.pending)
    # Of several processes each counts its own: about so many.
    title, total, done = "gradients", len(dataset), len(dataset) - missing
    if ranks.count > 1:
        title, total, done = f"gradients (rank {ranks.rank} of {ranks.count})", -(-missing // ranks.count), 0
    with meter(title, total, done=done, quiet=quiet) as progress:
        whole = Batching(positions, examples_at_once(encoder))
        for shard, is_kept, calls in _shards(writer, whole, ranks):
            examples = dataset.examples[shard.start : shard.stop]
            batching = replace(whole, calls=calls)
            rows = gradient_rows(
                task, plan, encoder, examples,
                batching=batching, progress=progress, objective=objective, autocast=autocast,
            )  # fmt: skip
            labels = class_labels(task, examples, batching=batching, autocast=autocast)
            if not is_kept:
                continue
            tensors = codec.encode(rows.units)
            refuse_not_held(tensors, [example.id for example in examples], writer.blueprint.dtype)
            columns = {"norms": rows.norms(), "weights": rows.weights}
            extra_columns = {name: columns[name].to(norm_type) for name in writer.blueprint.columns()}
            writer.write(shard, {**tensors, **extra_columns}, [label.fields() for label in labels])


def refuse_not_held(tensors: Mapping[str, Tensor], ids: Sequence[str], dtype: str) -> None:
    """Refuse rows that the stored type turned into infinities.

    Args:
        tensors: Of a shard, each with a leading axis of rows.
        ids: Of the rows' examples.
        dtype: The stored type, for the message.

    Raises:
        NonFinite: If a row is one, naming its example.
    """
    is_bad_N = torch.stack([~torch.isfinite(tensor).reshape(len(tensor), -1).all(1) for tensor in tensors.values()]).any(0)
    if bool(is_bad_N.any()):
        raise NonFinite(
            found=f"a gradient of the example {ids[int(is_bad_N.nonzero()[0])]!r} that {dtype} cannot hold",
            needed="finite gradients, and a stored type of wide enough range",
            do="drop this example, or store in another folder with dtype bfloat16 or float32",
        )


def _shards(writer: Writer, batching: Batching, ranks: Ranks) -> Iterator[tuple[Pending, bool, int]]:
    """What this process runs.

    Yields:
        A shard, whether it is this process's to write, and how many batches to run at least.
    """
    if ranks.in_step:
        for turn in turns(writer.pending, writer.dataset.examples, batching, ranks):
            yield turn.shard, turn.is_kept, turn.calls
        ranks.wait()
    # Of ranks in step all shards are there by now, and are only looked at.
    yield from ((shard, True, 0) for shard in writer.claims())

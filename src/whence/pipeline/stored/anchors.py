"""Stores of known queries, the anchors: axes that span their own gradients, and what of another query lies in that span.

A row's inner product with a preconditioned query is z . x for half-whitened gradients z of the document and x of the query. With orthonormal
axes A whose span holds x it is (A^T z) . (A^T x), whatever the document: exact for documents that nothing was learned from, too.

Axes: Q queries, B anchors, M coordinates of all units, K numbers of a row.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from whence.capture import Plan, check_task
from whence.compress import Aligned, Axes, Whitened
from whence.curvature import save_axes
from whence.data import Dataset, Example
from whence.errors import BadInput, StoreMismatch
from whence.load import load_records
from whence.pipeline.inputs import as_dataset, autocast_named
from whence.pipeline.stored.code_size import STORED_TYPES, stored_type
from whence.progress import meter
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig
from whence.store import Store
from whence.tasks import AbstractTask, records_in

__all__ = ["ANCHORS", "anchor_axes", "check_anchors", "check_queries", "is_anchored", "span_note", "with_anchors"]

ANCHORS = "anchors"
"""Among the learned tensors: SHA-256 of the anchors' ids and contents, 32 bytes."""
# Of whitened gradients, taken at a time.
_CHUNK_NUMBERS = 1 << 26
# Of an anchor's norm, below which what the anchors before it leave of it is rounding.
_LEFT = {torch.float64: 1e-12}
_LEFT_OF_FLOATS = 1e-6
# Shares that a note gives one by one.
_NAMED = 8
# From here on a query is said to lie in the span.
_ALL = 1 - 1e-4


def with_anchors(task: AbstractTask, config: BuildConfig) -> BuildConfig:
    """The same settings with the anchors prepared as queries are; as they are where there are none.

    Args:
        task: Says what a record is.
        config: Of a build.

    Raises:
        BadInput: If there are no anchors in what was passed, or they are no queries of this model.
    """
    given = config.anchors
    if given is None or isinstance(given, Dataset):
        return config
    records = list(records_in(load_records(str(given)) if isinstance(given, str | Path) else given))
    if not records:
        raise BadInput(
            found="no anchors" + (f" in {given}" if isinstance(given, str | Path) else ""),
            needed="one query or more, which the store is to be exact for",
            do="pass some, or leave anchors out",
        )
    return replace(config, anchors=as_dataset(task, records))


def check_queries(task: AbstractTask, plan: Plan, config: BuildConfig) -> None:
    """Refuse anchors that the model cannot be asked, before anything long runs; nothing without anchors.

    Args:
        task: Model and measurement.
        plan: Its units.
        config: With the anchors, prepared.

    Raises:
        BadInput: If they are no queries of this model.
    """
    if config.anchors is None:
        return
    try:
        autocast = autocast_named(config.autocast)
        check_task(task, plan, config.anchors.examples, objective="measurement", autocast=autocast)
    except BadInput as error:
        raise BadInput(
            found=f"anchors that are no queries of this model: {error.found}", needed=error.needed, do=error.do
        ) from error
    except KeyError as error:  # prepared by another kind of task
        raise BadInput(
            found=f"anchors that are no queries of this model: examples without the field {error}",
            needed="what this task prepares",
            do="pass records, or prepare them with the task of this build",
        ) from error


def anchor_axes(
    task: AbstractTask, plan: Plan, whitened: Whitened, config: BuildConfig, *, max_positions: int, quiet: bool
) -> dict[str, Tensor]:
    """Axes that span the anchors' half-whitened gradients, as tensors to be written.

    Args:
        task: Model and measurement.
        plan: Its units.
        whitened: One half of the damped inverse, with all coordinates.
        config: With the anchors, prepared.
        max_positions: Per batch.
        quiet: No progress on stderr.

    Raises:
        BadInput: If the gradient of every anchor is zero.
    """
    anchors, autocast, dtype = config.anchors, autocast_named(config.autocast), stored_type(config)
    with meter("anchors", len(anchors), quiet=quiet) as progress:
        rows = gradient_rows(
            task, plan, whitened, anchors.examples,
            batching=Batching(max_positions), progress=progress, objective="measurement", autocast=autocast,
        )  # fmt: skip
    rows_BM = torch.cat([row[:, 0] for row in rows.units], 1)
    del rows
    axes_KM = _orthonormal(rows_BM.to(torch.promote_types(rows_BM.dtype, torch.float32)))
    if not len(axes_KM):
        raise BadInput(
            found=f"gradients that are zero for all {len(anchors):,} anchors",
            needed="queries that the model's tracked parameters have a part in",
            do="check the anchors and the tracked parameters",
        )
    axes_MK = axes_KM.T.to(torch.float64 if dtype == "float64" else torch.float32)
    return {
        **save_axes(Axes.of(axes_MK, 32, 0, seed=config.seed)),
        "dtype": torch.tensor(STORED_TYPES.index(dtype)),
        ANCHORS: torch.tensor(list(bytes.fromhex(anchors.fingerprint)), dtype=torch.uint8),
    }


def _orthonormal(rows_BM: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, shape (K, M), K at most B, in their place: what the rows before leave of each.

    Gram-Schmidt, twice: after the second time what is left of a row is at right angles to the others to rounding (Giraud, Langou and
    Rozloznik 2005).
    """
    count = 0
    least = _LEFT.get(rows_BM.dtype, _LEFT_OF_FLOATS)
    for row_M in rows_BM:
        left_M, norm = row_M, float(row_M.norm())
        for _ in range(2):
            so_far_KM = rows_BM[:count]
            left_M = left_M - so_far_KM.T @ (so_far_KM @ left_M)
        if norm > 0 and float(left_M.norm()) > least * norm:
            rows_BM[count] = left_M / left_M.norm()
            count += 1
    return rows_BM[:count]


def check_anchors(tensors: dict[str, Tensor], config: BuildConfig, path: Path) -> None:
    """Refuse to go on with a code of other anchors; what is appended need not name them again.

    Args:
        tensors: That the code was learned with.
        config: Of the build that goes on, with its anchors prepared.
        path: Of the tensors.

    Raises:
        StoreMismatch: If they are others, there were none, or another type of rows is asked for.
    """
    stored = bytes(tensors[ANCHORS].tolist()).hex() if ANCHORS in tensors else None
    if config.anchors is not None and config.anchors.fingerprint != stored:
        raise StoreMismatch(
            found=f"a code of {'no' if stored is None else 'other'} anchors in {path.parent}",
            needed="the one of these anchors",
            do="build into another folder, or pass what the first build was given",
        )
    dtype = STORED_TYPES[int(tensors["dtype"])]
    if stored is not None and (config.rank or config.bytes_per_example or config.dtype not in ("method", dtype)):
        raise StoreMismatch(
            found=f"a code of anchors in {path.parent}, of {int(tensors['axes_width']):,} numbers of {dtype}",
            needed="no other size or type",
            do="leave rank, dtype and bytes_per_example out, or build into another folder",
        )


def is_anchored(store: Store) -> bool:
    """Whether a store's rows are of anchors, and so say nothing of an example but how it acts on them."""
    return "codes.safetensors" in store.files and ANCHORS in store.shapes_of("codes.safetensors")


def span_note(
    task: AbstractTask,
    plan: Plan,
    encoder: Aligned,
    queries: Sequence[Example],
    codes_QK: Tensor,
    *,
    positions: int,
    autocast: str | None,
) -> str:
    """Which part of the queries a store of anchors scores.

    Args:
        task: Model and measurement.
        plan: Its units.
        encoder: Of the store.
        queries: Examples.
        codes_QK: Their codes, shape (Q, 1, K).
        positions: Per batch.
        autocast: The model's type of arithmetic, as in a blueprint.
    """
    coordinates = sum(width for _, width in encoder.whitened.shapes())
    step, norms = max(1, _CHUNK_NUMBERS // coordinates), []
    with meter("queries", len(queries), quiet=True) as progress:
        for start in range(0, len(queries), step):
            rows = gradient_rows(
                task, plan, encoder.whitened, queries[start : start + step],
                batching=Batching(positions), progress=progress, objective="measurement", autocast=autocast_named(autocast),
            )  # fmt: skip
            norms.append(sum(row.double().square().sum((1, 2)).cpu() for row in rows.units))
    squared_Q = torch.cat([torch.as_tensor(part) for part in norms])
    inside_Q = codes_QK.double().square().sum((1, 2)).cpu()
    shares_Q = torch.where(squared_Q > 0, inside_Q / squared_Q.clamp_min(1e-300), torch.ones_like(squared_Q)).clamp(max=1.0)
    if bool((shares_Q >= _ALL).all()):
        return "all queries lie in the span of the store's anchors: its rows' scores are those of EK-FAC without a store"
    if len(shares_Q) <= _NAMED:
        shares = ", ".join(f"{share:.3g}" for share in shares_Q.tolist())
    else:
        shares = f"{float(shares_Q.min()):.3g} to {float(shares_Q.max()):.3g}, {float(shares_Q.mean()):.3g} on average,"
    of_what = "of the squared norm of the queries' preconditioned gradients"
    return f"{shares} {of_what} lies in the span of the store's anchors: its rows score that part"

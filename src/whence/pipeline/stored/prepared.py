"""Queries made ready against one store: gradients, damping, preconditioning, and their hits' tokens."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.capture import Plan, check_task, plan_units
from whence.compress import Aligned, Encoder
from whence.curvature import ResolvedDamping, stored_damping
from whence.data import Dataset, skipped_note
from whence.errors import BadInput, StoreMismatch
from whence.methods import Method, method_named
from whence.pipeline.inputs import as_dataset, autocast_named, refuse_bare_model
from whence.pipeline.stored.anchors import span_note
from whence.pipeline.stored.encoders import stored_encoder
from whence.pipeline.stored.query_tokens import TOKENS_AT_ONCE, queries_of_tokens
from whence.pipeline.stored.same_model import check_store_model, probe_file, remade
from whence.progress import meter
from whence.records import Recipe
from whence.report import ClassLabel, Hit
from whence.score import Batching, Rows, gradient_rows, precondition, row_scores, token_scores, whiten
from whence.settings import Damping, Runtime
from whence.store import Store, addition_notes, deleted_notes, fidelity_notes, left_out_notes, open_store
from whence.tasks import AbstractTask, contrast_notes
from whence.workers import Workers

__all__ = ["PreparedQuery", "PreparedStore", "check_damping", "hit_of", "token_notes"]

# Token scores come from the gradient made again: they explain a stored row's score only as far as it holds that gradient.
_FARTHEST = 2.0
_WITHHELD = (
    "{} hits have no token scores: rows of so few bits or factors hold too little of these gradients, whose own scores are less than "
    "half or more than twice of the hits'; do this: build with {}; or ask a store of aligned in two stages (--rerank exact), which takes "
    "whole gradients"
)
_UNREAD = (
    "{} hits have no token scores: the store has no text of them, or one that gives other tokens than at the build; do this: ask the exact "
    "stage of a store of aligned (--rerank exact), which takes the training data, or build with texts"
)


@dataclasses.dataclass(frozen=True)
class PreparedStore:
    """A store and its model, held against each other once and ready for any number of queries.

    Args:
        store: The store.
        task: The model that it was built with.
        plan: Its units.
        encoder: What made the rows.
        damping: None where it is inside the rows, or there is no curvature.
        workers: Who scans the store for this process; None if it does so itself.
        notes: What could not be told of the model.
    """

    store: Store
    task: AbstractTask
    plan: Plan
    encoder: Encoder
    damping: ResolvedDamping | None
    workers: Workers | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        store: Store | str | Path,
        task: AbstractTask,
        requested: Damping = Damping(),
    ) -> "PreparedStore":
        """Load what queries need; arguments as in `whence.query`.

        Raises:
            BadInput: If a damping is given that the store has no use for.
            StoreMismatch: If the task tracks other parameters, or its model computes something else.
        """
        store = store if isinstance(store, Store) else open_store(store)
        store.accepts(task)
        blueprint, method = store.blueprint, method_named(store.blueprint.method)
        damping = None
        if method.curvature == "fisher":
            recipe = task.recipe or (Recipe(**blueprint.recipe) if blueprint.recipe else None)
            damping = stored_damping(recipe, requested, default=method.relative_damping)
        check_damping(method.name, requested)
        plan = plan_units(task)
        tracked, stored = (
            # Parts of one code are of the same parameters.
            list(dict.fromkeys(name for unit in units for name in unit.parameters))
            for units in (plan.units, blueprint.units)
        )
        if tracked != stored:
            raise StoreMismatch(
                found=f"a store of {len(blueprint.units)} units and a task with {len(plan.units)}",
                needed="the same tracked parameters",
                do="pass the same track, ignore and functional to the task as at the build",
            )
        encoder = stored_encoder(store, plan, task)
        model_notes = check_store_model(task, plan, encoder, blueprint, probe_file(store), store=store)
        return cls(store, task, plan, encoder, damping, notes=tuple(model_notes))

    @property
    def damping_note(self) -> str:
        """How damping was chosen; empty for a method without curvature."""
        if self.damping is not None:
            return self.damping.note
        method = method_named(self.store.blueprint.method)
        if method.curvature != "ekfac":
            return ""
        relative = float(self.store.file("codes.safetensors")["damping"])
        chosen = "the method's default" if relative == method.relative_damping else "as asked at the build"
        return f"damping {relative:g} x mean eigenvalue, {chosen}, inside the rows"

    def check(self, dataset: Dataset) -> None:
        """Hold the gradients of a few examples against autograd, see `whence.capture.check_task`."""
        autocast = autocast_named(self.store.blueprint.autocast)
        check_task(self.task, self.plan, dataset.examples, objective="measurement", autocast=autocast)

    def prepare(self, dataset: Dataset, *, quiet: bool, positions: int | None = None) -> "PreparedQuery":
        """Take the queries' gradients and precondition them.

        Args:
            dataset: The queries.
            quiet: No progress on stderr.
            positions: Per batch; None takes those of the build.
        """
        store, task, damping, method = self.store, self.task, self.damping, method_named(self.store.blueprint.method)
        logged = [store.blueprint.task[name] for name in ("logged", "bases", "code") if name in store.blueprint.task]
        notes = (
            f"{self.plan.coverage}", *([self.damping_note] if self.damping_note else []), *logged,
            *fidelity_notes(store), *left_out_notes(store), *deleted_notes(store),
            *addition_notes(store.folder), *task.query_notes(), *skipped_note("queries", dataset.skipped),
            *contrast_notes(dataset.examples), *self.notes,
        )  # fmt: skip
        with meter("queries", len(dataset), quiet=quiet) as progress:
            rows = gradient_rows(
                task, self.plan, self.encoder, dataset.examples,
                batching=Batching(positions or store.blueprint.batch_positions), progress=progress, objective="measurement",
                autocast=autocast_named(store.blueprint.autocast),
            )  # fmt: skip
        if isinstance(self.encoder, Aligned) and self.encoder.is_anchored:
            span = span_note(
                task, self.plan, self.encoder, dataset.examples, rows.units[0],
                positions=positions or store.blueprint.batch_positions, autocast=store.blueprint.autocast,
            )  # fmt: skip
            notes = (*notes, span)
        roots = None
        if method.whitened and damping is not None:
            whitened = whiten(store, rows, damping, is_mixed=method.is_mixed)
            ready, norms_Q, roots = whitened.units, whitened.norms_Q, whitened.roots
            notes = (*notes, *_whitening_notes(method, whitened.share))
        else:
            ready = precondition(store, rows, damping)
            norms_Q = rows.norms() / len(store) if method.cosine else None
        plain = task.unit if method.curvature != "identity" else f"inner product of gradients / {len(store):,}"
        unit = "cosine" if method.cosine else plain
        return PreparedQuery(
            store, task, self.plan, self.encoder, dataset, rows, ready, norms_Q, unit, method.name, notes, damping, roots,
            positions or store.blueprint.batch_positions,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PreparedQuery:
    """Queries made ready against one store.

    Args:
        store: The store.
        task: The model that it was built with.
        plan: Its units.
        encoder: What made the rows.
        dataset: The queries.
        rows: Their encoded gradients, and measurements.
        preconditioned: Preconditioned, per stored unit of shape (Q, P, R).
        norms_Q: For cosines.
        unit: What one unit of score means.
        method: Name of the method.
        notes: What a reader has to know.
        damping: None where it is inside the rows, or there is no curvature.
        roots: What whitens the stored rows, per unit, for methods that do.
        max_positions: Positions per batch, where the model runs again.
    """

    store: Store
    task: AbstractTask
    plan: Plan
    encoder: Encoder
    dataset: Dataset
    rows: Rows
    preconditioned: list[Tensor]
    norms_Q: Tensor | None
    unit: str
    method: str
    notes: tuple[str, ...]
    damping: ResolvedDamping | None
    roots: list[Tensor] | None
    max_positions: int

    @classmethod
    def prepare(
        cls,
        store: Store | str | Path,
        task: AbstractTask,
        queries: Dataset | Iterable[Any],
        damping: Damping,
        quiet: bool,
        runtime: Runtime = Runtime(),
    ) -> "PreparedQuery":
        """Take the queries' gradients and precondition them; arguments as in `whence.query`."""
        refuse_bare_model(task)
        prepared = PreparedStore.load(store, task, damping)
        dataset = as_dataset(task, queries)
        prepared.check(dataset)
        wanted = runtime.positions(example.length for example in dataset.examples)
        return prepared.prepare(dataset, quiet=quiet, positions=wanted)

    @property
    def at_once(self) -> int:
        """All queries: they are as small as rows."""
        return len(self.dataset)

    def scores(self, queries: range, rows: Sequence[int]) -> Tensor:
        """Scores of some queries for some rows of the store only, shape (Q, rows); rows ascending."""
        chosen = slice(queries.start, queries.stop)
        norms_Q = None if self.norms_Q is None else self.norms_Q[chosen]
        return row_scores(self.store, [unit[chosen] for unit in self.preconditioned], rows, norms_Q=norms_Q, roots=self.roots)

    def with_tokens(self, hit: Hit, query: int) -> tuple[Hit, bool]:
        """The hit with a score per token, and whether it has none because its row is too far from its gradient.

        A text that does not give the tokens that the row was built from has none either.
        """
        example = remade(self.store, self.task, hit.row) if hit.text else None
        if example is None or example.token_spans is None:
            return hit, False
        factored = [unit[query] for unit in self.preconditioned]
        for index, right_CR in self.store.right_factors(hit.row).items():
            # A factored row is G V^T V, the gradient seen through its own right factors: put them into the query instead.
            factored[index] = factored[index] @ right_CR.T.to(factored[index]) @ right_CR.to(factored[index])
        parts = token_scores(self.task, self.plan, self.encoder, example, factored)
        total, stored = float(parts.sum()), self._stored_score(hit, query)
        if not 1 / _FARTHEST <= total / stored <= _FARTHEST:
            return hit, True
        parts = parts * (hit.score / total)
        spans = tuple((int(a), int(b)) for a, b in example.token_spans)
        return dataclasses.replace(hit, token_spans=spans, token_scores=tuple(parts.tolist())), False

    def query_parts(self, query: int, rows: Sequence[int]) -> Tensor:
        """Parts of one query's scores of some rows, ascending, by its tokens, shape (A, K); exact, since scores are linear in the query."""
        parts = [torch.zeros(0, len(rows))]
        examples = queries_of_tokens(self.task, self.dataset.examples[query])
        for start in range(0, len(examples), TOKENS_AT_ONCE):
            some = examples[start : start + TOKENS_AT_ONCE]
            with meter("query tokens", len(some), quiet=True) as progress:
                gradients = gradient_rows(
                    self.task, self.plan, self.encoder, some, batching=Batching(self.max_positions), progress=progress,
                    objective="measurement", autocast=autocast_named(self.store.blueprint.autocast),
                )  # fmt: skip
            if self.roots is None:
                ready = precondition(self.store, gradients, self.damping)
            else:
                # What whitens is of the whole queries, whatever their parts.
                scale = -1.0 / len(self.store)
                pairs = zip(gradients.units, self.roots, strict=True)
                ready = [(unit.flatten(1) @ root @ root * scale).view_as(unit) for unit, root in pairs]
            norms_Q = None if self.norms_Q is None else self.norms_Q[query].expand(len(some))
            parts.append(row_scores(self.store, ready, rows, norms_Q=norms_Q, roots=self.roots))
        return torch.cat(parts)

    def _stored_score(self, hit: Hit, query: int) -> float:
        """What the stored row scores before it is divided by norms, which is what the parts of a gradient add up to."""
        if self.norms_Q is None:
            return hit.score
        row = self.store.row(hit.row)
        inner = float(self.store.codec.scorer([unit[query : query + 1] for unit in self.preconditioned])(row))
        return inner * float(row["weights"]) if "weights" in row else inner


def check_damping(method: str, requested: Damping) -> None:
    """Refuse a damping that a store has no use for.

    Args:
        method: Of the store.
        requested: The damping.

    Raises:
        BadInput: If one is given for rows that are not damped when they are asked.
    """
    curvature = method_named(method).curvature
    if curvature == "fisher" or requested == Damping():
        return
    inside = curvature == "ekfac"
    raise BadInput(
        found=f"damping for a store of {method}",
        needed="the damping that its rows were whitened with" if inside else "a method with curvature",
        do="leave damping out" + (", or build with another relative_damping" if inside else ""),
    )


def token_notes(method: str, withheld: int, unread: int) -> tuple[str, ...]:
    """What is said of hits without token scores.

    Args:
        method: Of the store.
        withheld: Hits whose rows are too far from their gradients.
        unread: Hits without a text that gives their tokens.
    """
    more = "more bytes (--bytes-per-example)" if method == "aligned" else "a larger rank or dtype, or method aligned"
    return (
        *([_WITHHELD.format(withheld, more)] if withheld else []),
        *([_UNREAD.format(unread)] if unread else []),
    )


def hit_of(store: Store, row: int, score: float, example: Mapping[str, Any] | None = None) -> Hit:
    """What is known of a row, with its score; `example` is what `Store.example` gives, for whoever has read it."""
    example = store.example(row) if example is None else example
    span = tuple(example["span"]) if "span" in example else None
    words = example.get("source", ""), example.get("text", "")
    label = ClassLabel(example["label"], example.get("predicted", "")) if "label" in example else None
    return Hit(example["id"], row, score, *words, span, image=example.get("image", ""), label=label)


def _whitening_notes(method: Method, share: float) -> tuple[str, ...]:
    """What both sides of a cosine were multiplied with."""
    moments = "gradients divided by the root of their second moment on a sample of the training data, rows times columns"
    mixture = f"whitened by {share:.2g} of the queries' second moments and the rest of the rows'"
    whitened = mixture if method.is_mixed else "divided by the roots of the query's and of each document's own influence"
    return (moments, whitened) if method.optimizer_scaled else (whitened,)

"""Asking a store."""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.capture import Plan, check_task, plan_units
from whence.compress import Encoder
from whence.curvature import Damping, DampingRule, stored_damping
from whence.data import Dataset, Example
from whence.errors import BadInput, StoreMismatch
from whence.methods import method_named
from whence.pipeline.encoders import stored_encoder
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.records import Recipe, ScoreTable
from whence.report import Hit, Hits
from whence.score import Rows, all_scores, gradient_rows, mean_table, precondition, token_scores, top_scores, whiten
from whence.store import Store, dtype_named, open_store
from whence.tasks import AbstractTask

__all__ = ["ensemble_table", "query", "score_table"]

# Token scores come from the gradient made again: they explain a stored row's score only as far as it holds that gradient.
_FARTHEST = 2.0
_WITHHELD = (
    "{} hits have no token scores: rows of so few bits or factors hold too little of these gradients, whose own scores are less than "
    "half or more than twice of the hits'"
)


def query(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    k: int = 10,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    tokens: bool = False,
    quiet: bool = False,
) -> Hits:
    """The training examples that raise and lower each query's measurement most.

    Args:
        store: A store or its folder.
        task: The model that the store was built with.
        queries: As `task.prepare` takes them, or already prepared.
        k: Hits on each side at most; proponents have positive scores, opponents negative ones.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the loss's curvature.
        damping_rule: A published rule by name, see `whence.curvature.stored_damping`; without any of the three the method's own share of the
            mean eigenvalue.
        tokens: Whether the text hits get a score per token, which runs the model on each hit again. They add up to the hit's score.
            A hit whose gradient, made again, scores less than half or more than twice of what its stored row does gets none, and a note
            says so.
        quiet: No progress on stderr.

    Returns:
        Both tails per query.

    Raises:
        BadInput: If k is not positive, or tokens are to be scored that the task cannot place in a text.
    """
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one hit")
    asked = _Asked.prepare(store, task, queries, relative_damping, absolute_damping, damping_rule, quiet)
    if tokens and not any(example.token_spans is not None for example in asked.dataset.examples):
        raise BadInput(
            found="tokens=True for queries without token positions",
            needed="queries with text, a language model and a fast tokenizer",
            do="leave tokens out",
        )
    with meter("scan", len(asked.store), quiet=quiet) as progress:
        high, low = top_scores(asked.store, asked.ready, k, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots)
    hits, withheld = [], 0
    wanted = high.rows_QK.numel() + low.rows_QK.numel()
    with meter("tokens", wanted, quiet=quiet or not tokens) as progress:
        for top, sign in ((high, 1), (low, -1)):
            sides = []
            for place in range(len(asked.dataset)):
                pairs = zip(top.scores_QK[place].tolist(), top.rows_QK[place].tolist(), strict=True)
                # An example that raises the measurement is no opponent, however few lower it.
                found = [_hit(asked.store, row, score) for score, row in pairs if score * sign > 0]
                if tokens:
                    judged = [asked.with_tokens(hit, place) for hit in found]
                    found = [hit for hit, _ in judged]
                    withheld += sum(is_far for _, is_far in judged)
                    progress.advance(top.rows_QK.shape[1])
                sides.append(tuple(found))
            hits.append(tuple(sides))
    return Hits(
        queries=tuple(_title(example) for example in asked.dataset.examples),
        proponents=hits[0],
        opponents=hits[1],
        measurements=tuple(asked.rows.values.tolist()),
        unit=asked.unit,
        method=asked.method,
        num_examples=len(asked.store),
        notes=(*asked.notes, *([_WITHHELD.format(withheld)] if withheld else [])),
        measurement_unit=task.unit,
    )


def score_table(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    quiet: bool = False,
) -> ScoreTable:
    """Every training example's score for every query; arguments as in `query`."""
    dampings = (relative_damping, absolute_damping, damping_rule)
    return _table(store, task, queries, dampings, quiet, weighted=True)


def ensemble_table(
    stores: Sequence[Store | str | Path],
    tasks: Sequence[AbstractTask],
    queries: Dataset | Iterable[Any],
    *,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    quiet: bool = False,
) -> ScoreTable:
    """Scores over several models trained alike, one store each: seeds or checkpoints.

    Where rows have weights (TRAK, GraSS) scores without them and weights are averaged apart and then multiplied (Park et al. 2023, section
    3); elsewhere this is the mean of the scores.

    Args:
        stores: Stores of the same examples, built with one method.
        tasks: The model of each.
        queries: As in `query`.
        relative_damping: As in `query`.
        absolute_damping: As in `query`.
        damping_rule: As in `query`.
        quiet: No progress on stderr.

    Returns:
        One table.

    Raises:
        BadInput: If there are not as many tasks as stores, or the stores are of different methods.
    """
    opened = [store if isinstance(store, Store) else open_store(store) for store in stores]
    methods = sorted({store.blueprint.method for store in opened})
    if len(opened) != len(tasks) or len(methods) != 1:
        raise BadInput(
            found=f"{len(opened)} stores ({', '.join(methods) or 'none'}) and {len(tasks)} tasks",
            needed="as many of both, one or more, and one method",
            do="pass the task of each store in the same order",
        )
    dampings = (relative_damping, absolute_damping, damping_rule)
    pairs = zip(opened, tasks, strict=True)
    table = mean_table([_table(store, task, queries, dampings, quiet, weighted=False) for store, task in pairs])
    if "weights" not in opened[0].blueprint.columns():
        return table
    weights_MN = torch.stack([torch.cat([one["weights"] for _, one in store.shards(["weights"])]) for store in opened])
    return dataclasses.replace(table, scores=table.scores * weights_MN.mean(0).to(table.scores))


def _table(
    store, task, queries, dampings: tuple[float | None, float | None, DampingRule | None], quiet: bool, *, weighted: bool
) -> ScoreTable:
    started = time.monotonic()
    asked = _Asked.prepare(store, task, queries, *dampings, quiet)
    with meter("scan", len(asked.store), quiet=quiet) as progress:
        scores = all_scores(
            asked.store, asked.ready, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots, weighted=weighted
        )
    blueprint = asked.store.blueprint
    settings = [f"rank {blueprint.rank}"] + ([f"{blueprint.factor_rank} factors"] if blueprint.factor_rank else [])
    settings += [blueprint.projection] if blueprint.projection != method_named(blueprint.method).projection else []
    settings += [asked.damping.label] if asked.damping is not None else []
    return ScoreTable(
        scores,
        asked.dataset.ids,
        asked.store.ids(),
        asked.unit,
        f"{asked.method} {', '.join(settings)}",
        asked.notes,
        bytes_per_example=asked.store.codec.row_bytes(),
        seconds=time.monotonic() - started,
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Queries made ready against one store."""

    store: Store
    task: AbstractTask
    plan: Plan
    encoder: Encoder
    dataset: Dataset
    rows: Rows
    ready: list[Tensor]
    norms_Q: Tensor | None
    unit: str
    method: str
    notes: tuple[str, ...]
    damping: Damping | None
    roots: list[Tensor] | None

    @classmethod
    def prepare(cls, store, task, queries, relative_damping, absolute_damping, damping_rule, quiet) -> "_Asked":
        store = store if isinstance(store, Store) else open_store(store)
        store.accepts(task)
        blueprint, method = store.blueprint, method_named(store.blueprint.method)
        damping = None
        if method.curvature == "fisher":
            recipe = task.recipe or (Recipe(**blueprint.recipe) if blueprint.recipe else None)
            damping = stored_damping(
                recipe,
                relative_damping=relative_damping,
                absolute_damping=absolute_damping,
                rule=damping_rule,
                default=method.relative_damping,
            )
        elif any(given is not None for given in (relative_damping, absolute_damping, damping_rule)):
            inside = method.curvature == "ekfac"
            raise BadInput(
                found=f"damping for a store of {method.name}",
                needed="the damping that its rows were whitened with" if inside else "a method with curvature",
                do="leave damping out" + (", or build with another relative_damping" if inside else ""),
            )
        dataset = as_dataset(task, queries)
        plan = plan_units(task)
        tracked, stored = ([name for unit in units for name in unit.parameters] for units in (plan.units, blueprint.units))
        if tracked != stored:
            raise StoreMismatch(
                found=f"a store of {len(blueprint.units)} units and a task with {len(plan.units)}",
                needed="the same tracked parameters",
                do="pass the same track, ignore and functional to the task as at the build",
            )
        notes = (f"{plan.coverage}", *([damping.note] if damping is not None else []))
        encoder = stored_encoder(store, plan, task)
        autocast = None if blueprint.autocast is None else dtype_named(blueprint.autocast)
        check_task(task, plan, dataset.examples, objective="measurement", autocast=autocast)
        with meter("queries", len(dataset), quiet=quiet) as progress:
            rows = gradient_rows(
                task, plan, encoder, dataset.examples,
                max_positions=blueprint.batch_positions, progress=progress, objective="measurement", autocast=autocast,
            )  # fmt: skip
        roots = None
        if method.whitened and damping is not None:
            found = whiten(store, rows, damping)
            ready, norms_Q, roots = found.units, found.norms_Q, found.roots
            moments = (
                "gradients divided by the root of their second moment on a sample of the training data, rows times columns"
            )
            notes = (*notes, moments, f"whitened by {found.share:.2g} of the queries' second moments and the rest of the rows'")
        else:
            ready = precondition(store, rows, damping)
            norms_Q = rows.norms() / len(store) if method.cosine else None
        plain = task.unit if method.curvature != "identity" else f"inner product of gradients / {len(store):,}"
        unit = "cosine" if method.cosine else plain
        return cls(store, task, plan, encoder, dataset, rows, ready, norms_Q, unit, method.name, notes, damping, roots)

    def with_tokens(self, hit: Hit, place: int) -> tuple[Hit, bool]:
        """The hit with a score per token, and whether it has none because its row is too far from its gradient.

        A text that does not give the tokens that the row was built from has none either.
        """
        known = self.store.example(hit.row)
        if not hit.text:
            return hit, False
        prompt = known.get("prompt", 0)
        record = {"prompt": hit.text[:prompt], "completion": hit.text[prompt:]} if prompt else {"text": hit.text}
        example = self.task.prepare([record]).examples[0]
        # A window of a split text may begin inside a word, or without the mark that the tokenizer puts at the start.
        if example.token_spans is None or example.length != known["length"]:
            return hit, False
        asked = [unit[place] for unit in self.ready]
        for index, right_CR in self.store.right_factors(hit.row).items():
            # A factored row is G V^T V, the gradient seen through its own right factors: put them into the query instead.
            asked[index] = asked[index] @ right_CR.T.to(asked[index]) @ right_CR.to(asked[index])
        parts = token_scores(self.task, self.plan, self.encoder, example, asked)
        total, stored = float(parts.sum()), self._stored_score(hit, place)
        if not 1 / _FARTHEST <= total / stored <= _FARTHEST:
            return hit, True
        parts = parts * (hit.score / total)
        spans = tuple((int(a), int(b)) for a, b in example.token_spans)
        return dataclasses.replace(hit, token_spans=spans, token_scores=tuple(parts.tolist())), False

    def _stored_score(self, hit: Hit, place: int) -> float:
        """What the stored row scores before it is divided by norms, which is what the parts of a gradient add up to."""
        if self.norms_Q is None:
            return hit.score
        row = self.store.row(hit.row)
        inner = float(self.store.codec.scorer([unit[place : place + 1] for unit in self.ready])(row))
        return inner * float(row["weights"]) if "weights" in row else inner


def _hit(store: Store, row: int, score: float) -> Hit:
    known = store.example(row)
    span = tuple(known["span"]) if "span" in known else None
    return Hit(known["id"], row, score, known.get("source", ""), known.get("text", ""), span)  # type: ignore[arg-type]


def _title(example: Example) -> str:
    return example.text or example.id

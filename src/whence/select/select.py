"""Keep, drop or re-weight training examples by what they are worth, within a budget and with quotas.

Axes: N training examples, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite
from whence.records import ScoreTable
from whence.select.budget import Budget, allot, soft_weights
from whence.select.reasons import Standing, reason
from whence.select.selection import CRITERIA, Decision, Selection, criterion_of
from whence.settings import SelectConfig, records_only

__all__ = ["select"]


@records_only(config=SelectConfig)
def select(
    table: ScoreTable,
    *,
    config: SelectConfig = SelectConfig(),
    groups: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
    duplicates: Mapping[str, str] | None = None,
) -> Selection:
    """Decide for every training example whether it is kept, and with which weight.

    Examples are ranked by the mean of their column: for `attribute` or `score_table` on a validation set its predicted effect on the mean
    validation measurement, for `self_influence` and the loss the one number there is (`value_table` makes all of these). The table says
    which of these its values are (`table.values`), and so which end is the better one. With equal budgets, keeping the best and dropping
    the worst come to the same.

    Args:
        table: Values, shape (queries, train).
        config: Which are kept, with a budget in `keep` or `drop`.
        groups: Class or source of every example, in the order of the table's columns: each has a quota of its own.
        tokens: Length of every example, for budgets in tokens and for `per_token`.
        duplicates: By id of an example the id of its near-duplicate, as `near_duplicates` finds them: of each such set only the best ranked
            is kept. They compete for the same value, and a ranking alone would keep all.

    Returns:
        A decision per example, in the order of the table's columns.

    Raises:
        BadInput: If there is no budget and nothing else to select by; if a setting has nothing to act on; if `by` is not what the table's
            values are; or if groups, tokens or duplicates do not fit the table.
        UnknownOption: If the table says that its values are something that there is not.
        NonFinite: If a value is NaN or infinite.
    """
    _check_fit(table, groups=groups, tokens=tokens, duplicates=duplicates)
    budget = _kept_budget(config, len(table.train_ids), tokens, has_duplicates=duplicates is not None)
    if config.quota != "proportional" and groups is None:
        raise BadInput(found=f"quota={config.quota!r} without groups", needed="the group of every example", do="pass groups")
    if config.per_token and tokens is None:
        raise BadInput(found="per_token without tokens", needed="the length of every example", do="pass tokens")

    by = criterion_of(table, config.by)
    prefer = config.prefer or CRITERIA[by].prefer
    values_N = _values(table, tokens if config.per_token else None)
    wanted_N = values_N if prefer == "high" else -values_N
    order = torch.argsort(wanted_N, descending=True, stable=True).tolist()

    beaten = _beaten(order, table.train_ids, duplicates or {})
    names = [str(name) for name in groups] if groups is not None else [""] * len(order)
    sizes = list(tokens) if budget.unit == "tokens" and tokens is not None else [1] * len(order)
    parts = _parts(order, names, beaten)
    quotas = _quotas(budget.amount, parts, sizes, config.quota)
    weights_N = torch.zeros(len(order), dtype=torch.float64)
    for name, rows in parts.items():
        if config.reweight:
            _spread(weights_N, wanted_N, rows, quotas, name, len(order))
        else:
            weights_N[_taken(rows, sizes, quotas[name])] = 1.0

    standings = _standings(order, parts, quotas, budget.unit)
    decisions = []
    for row, (name, value, weight) in enumerate(zip(table.train_ids, values_N.tolist(), weights_N.tolist(), strict=True)):
        winner, standing = beaten.get(row), standings[row]
        why = reason(by, value, weight, standing, winner=winner, reweight=config.reweight, prefer=prefer)
        group, length = None if groups is None else names[row], None if tokens is None else int(tokens[row])
        decisions.append(
            Decision(name, "keep" if weight > 0 else "drop", weight, value, standing.rank, why, group, length, winner)
        )
    unit = f"{table.unit} per token" if config.per_token else table.unit
    kind = budget.unit, config.reweight, table.notes
    return Selection(by, unit, table.method, budget.words, tuple(decisions), *kind)


def _values(table: ScoreTable, tokens: Sequence[int] | None) -> Tensor:
    """What each example is worth, shape (N,): the mean of its column, by length if there are lengths.

    Raises:
        NonFinite: If one is NaN or infinite.
    """
    values_N = table.scores.detach().cpu().double().mean(0)
    if not bool(torch.isfinite(values_N).all()):
        row = int((~torch.isfinite(values_N)).nonzero()[0])
        raise NonFinite(
            found=f"the value {float(values_N[row])} of {table.train_ids[row]!r}",
            needed="finite values",
            do="score again with more damping",
        )
    if tokens is None:
        return values_N
    return values_N / torch.tensor([max(count, 1) for count in tokens], dtype=torch.float64)


@dataclass(frozen=True)
class _Amount:
    """What may be kept: an amount, its unit, and the words for it."""

    amount: int
    unit: Literal["examples", "tokens"]
    words: str


def _check_fit(table: ScoreTable, *, groups, tokens, duplicates) -> None:
    count = len(table.train_ids)
    if tuple(table.scores.shape) != (len(table.query_ids), count) or 0 in table.scores.shape:
        raise BadInput(
            found=f"values of shape {tuple(table.scores.shape)} for {len(table.query_ids)} query and {count} train ids",
            needed="one row per query and one column per training example, at least one of each",
            do="check what made the table",
        )
    for name, given in (("groups", groups), ("tokens", tokens)):
        if given is not None and len(given) != count:
            raise BadInput(
                found=f"{len(given)} {name} for {count} examples",
                needed="one for each, in the order of the table's columns",
                do=f"make {name} from the data that was scored",
            )
    unknown = sorted(set(duplicates or ()).union((duplicates or {}).values()) - set(table.train_ids))
    if unknown:
        raise BadInput(
            found=f"the near-duplicate {unknown[0]!r}, which has no value",
            needed="duplicates among the examples of the table",
            do="look for them in a store of the same data",
        )


def _kept_budget(config: SelectConfig, count: int, tokens: Sequence[int] | None, *, has_duplicates: bool) -> _Amount:
    keep, drop, reweight = config.keep, config.drop, config.reweight
    amount = drop if keep is None else keep
    if amount is None:
        if not has_duplicates or reweight:
            raise BadInput(found="no budget", needed="keep or drop", do="say how much, such as keep='50%' or drop=100")
        return _Amount(count, "examples", "all but near-duplicates")
    budget = Budget.read(amount)
    is_tokens = budget.unit == "tokens"
    if is_tokens and tokens is None:
        raise BadInput(found="a budget in tokens without tokens", needed="the length of every example", do="pass tokens")
    if is_tokens and reweight:
        raise BadInput(found="reweight with a budget in tokens", needed="one in examples or a share", do="write such as '50%'")
    total = sum(tokens) if is_tokens and tokens is not None else count
    amount = budget.units(count)
    num_kept = amount if keep is not None else total - amount
    unit = "tokens" if is_tokens else "examples"
    if not 1 <= num_kept <= total:
        verb = "keep" if keep is not None else "drop"
        raise BadInput(
            found=f"{verb}={keep if keep is not None else drop!r} of {total:,} {unit}",
            needed=f"something to {'keep' if num_kept < 1 else 'choose from'}",
            do=f"{verb} less",
        )
    return _Amount(num_kept, unit, f"keep {num_kept:,} of {total:,} {unit}")


def _beaten(order: Sequence[int], ids: Sequence[str], duplicates: Mapping[str, str]) -> dict[int, str]:
    """By place of an example that is not kept, the id of the better ranked near-duplicate."""
    first: dict[str, int] = {}
    beaten = {}
    leader_of = {**{leader: leader for leader in duplicates.values()}, **duplicates}
    for row in order:
        leader = leader_of.get(ids[row])
        if leader is None:
            continue
        if leader in first:
            beaten[row] = ids[first[leader]]
        else:
            first[leader] = row
    return beaten


def _parts(order: Sequence[int], names: Sequence[str], beaten: Mapping[int, str]) -> dict[str, list[int]]:
    """Places of each group's candidates, best first; groups by name."""
    parts: dict[str, list[int]] = {name: [] for name in sorted(set(names))}
    for row in order:
        if row not in beaten:
            parts[names[row]].append(row)
    return parts


def _quotas(
    amount: int, parts: Mapping[str, Sequence[int]], sizes: Sequence[int], quota: str | Mapping[str, float]
) -> dict[str, int]:
    caps = [sum(sizes[row] for row in rows) for rows in parts.values()]
    if isinstance(quota, Mapping):
        odd = sorted(set(map(str, quota)) ^ set(parts))
        if odd or min(quota.values()) < 0 or not sum(quota.values()):
            raise BadInput(
                found=f"quotas for {', '.join(sorted(map(str, quota)))[:200]} ({odd[0]!r} is only there or only in the data)"
                if odd
                else "negative quotas, or none above 0",
                needed=f"a share of 0 or more for each of: {', '.join(parts)[:200]}",
                do="name every group once",
            )
        shares = {str(name): share for name, share in quota.items()}
        weights = [shares[name] for name in parts]
    else:
        weights = [1.0] * len(parts) if quota == "equal" else [float(cap) for cap in caps]
    return dict(zip(parts, allot(amount, weights, caps), strict=True))


def _taken(rows: Sequence[int], sizes: Sequence[int], quota: int) -> list[int]:
    """The first of these that fit; a long one that does not fit makes room for shorter ones after it."""
    taken = []
    for row in rows:
        if sizes[row] <= quota:
            taken.append(row)
            quota -= sizes[row]
    return taken


def _spread(weights_N: Tensor, wanted_N: Tensor, rows: Sequence[int], quotas: Mapping[str, int], name: str, count: int) -> None:
    if quotas[name]:
        share = quotas[name] / sum(quotas.values())
        weights_N[list(rows)] = soft_weights(wanted_N[list(rows)], quotas[name]) * (share * count / len(rows))


def _standings(
    order: Sequence[int], parts: Mapping[str, Sequence[int]], quotas: Mapping[str, int], unit: str
) -> dict[int, Standing]:
    ranks = {row: rank for rank, row in enumerate(order, 1)}
    standings = {row: Standing(rank, len(order)) for row, rank in ranks.items()}
    for name, rows in parts.items():
        for inside, row in enumerate(rows, 1):
            standings[row] = Standing(ranks[row], len(order), name, inside, len(rows), quotas[name], unit)
    return standings

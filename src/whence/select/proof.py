"""Was the selection right? Train on it, on rival selections and on random ones of the same make, and measure.

Axes: S seeds, Q queries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whence.errors import BadInput
from whence.evaluate import Interval, Measure, RemovalResult, Retraining, Train, removal_test
from whence.records import ScoreTable
from whence.select.select import select
from whence.select.selection import Selection
from whence.settings import SelectConfig

__all__ = ["Proof", "prove", "random_twin"]

RANDOM = "random"


@dataclass(frozen=True)
class Proof:
    """What training on each selection did.

    Args:
        name: Of the selection that is proved.
        result: The runs, by name of the selection: rises of the loss against training on everything, "random" among them.
    """

    name: str
    result: RemovalResult

    def over_all(self, name: str) -> Interval:
        """Mean change of the loss against training on everything, with its interval over seeds; negative is better."""
        return self.result.conditions[name].overall

    def over_random(self, name: str) -> Interval:
        """The same against random data of the same make, paired by seed."""
        return self.result.difference(name, RANDOM)

    def over_rival(self, rival: str) -> Interval:
        """The selection's loss minus a rival's, paired by seed."""
        return self.result.difference(self.name, rival)

    @property
    def header(self) -> tuple[str, ...]:
        """Of `cells`."""
        return ("trained on", "dropped", "loss", "against all", "against random")

    def cells(self) -> list[tuple[str, ...]]:
        """One row per selection, for tables."""
        base_S = self.result.baseline_SQ.mean(1)
        rows = [("everything", "0", f"{float(base_S.mean()):.4g}", "", "")]
        for name, condition in self.result.conditions.items():
            loss = float((self.result.baseline_SQ + condition.rises_SQ).mean())
            against = "" if name == RANDOM else str(self.over_random(name))
            dropped = sum(condition.num_removed) / len(condition.num_removed)
            rows.append((name, f"{dropped:.0f}", f"{loss:.4g}", str(self.over_all(name)), against))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        names = [name for name in self.result.conditions if name != RANDOM]
        return {
            "name": self.name,
            **self.result.to_dict(),
            "over_random": {name: self.over_random(name).to_dict() for name in names},
            "over_rivals": {name: self.over_rival(name).to_dict() for name in names if name != self.name},
        }


def prove(
    selection: Selection,
    train: Train,
    measure: Measure,
    retraining: Retraining,
    *,
    rivals: Mapping[str, Selection] | None = None,
) -> Proof:
    """Train on everything, on the selection, on its rivals and on random data, several times each.

    Random data is drawn anew for every seed, as much of it and as much of every group as the selection keeps. Measure examples that neither
    the selection nor the model has seen: a validation set that was selected for is no judge.

    Args:
        selection: What is to be proved.
        train: Called with a mask of shape (N,), True for what is kept, and a seed; returns a model.
        measure: Called with a model; returns one loss per query, shape (Q,); any number of which less is better.
        retraining: Seeds, folder and workers.
        rivals: Other selections of the same data by name, such as one by loss.

    Returns:
        Changes of the loss with intervals over seeds.

    Raises:
        BadInput: If the selection is random itself; or one has weights, which a mask cannot hold, is of other data, or has a taken name.
    """
    if selection.by == RANDOM:
        raise BadInput(found="a random selection to prove", needed="one with a reason", do="select by something else")
    named = {selection.by: selection}
    for name, rival in (rivals or {}).items():
        if name in (selection.by, RANDOM):
            raise BadInput(found=f"a rival named {name!r}", needed="another name", do="rename it")
        named[name] = rival
    for name, chosen in named.items():
        if chosen.is_weighted:
            raise BadInput(
                found=f"weights in the selection {name!r}",
                needed="examples that are in or out, which is what a training function is told",
                do="select without reweight",
            )
        if [decision.id for decision in chosen.decisions] != [decision.id for decision in selection.decisions]:
            raise BadInput(
                found=f"a rival {name!r} of other examples",
                needed="selections of the same data in the same order",
                do="select again from one dataset",
            )
    removals: dict[str, Sequence[Sequence[int]]] = {name: [chosen.dropped] for name, chosen in named.items()}
    removals[RANDOM] = [random_twin(selection, seed).dropped for seed in retraining.seeds]
    result = removal_test(train, measure, len(selection), removals, retraining)
    return Proof(selection.by, result)


def random_twin(selection: Selection, seed: int) -> Selection:
    """A random selection of the same make: as much of every group, in examples, or in tokens where the budget was in tokens.

    Args:
        selection: What to imitate.
        seed: The same seed draws the same examples.

    Returns:
        The selection.
    """
    decisions = selection.decisions
    ids = tuple(decision.id for decision in decisions)
    is_tokens = selection.counts == "tokens"
    keepers = [decision for decision in decisions if decision.decision == "keep"]
    groups, quota = None, None
    if decisions[0].group is not None:
        of_group = Counter({str(decision.group): 0 for decision in decisions})
        for decision in keepers:
            of_group[str(decision.group)] += (decision.tokens or 0) if is_tokens else 1
        groups, quota = [str(decision.group) for decision in decisions], dict(of_group)
    total = sum((decision.tokens or 0) if is_tokens else 1 for decision in keepers)
    scores_1N = torch.randn(1, len(ids), generator=torch.Generator().manual_seed(seed))
    table = ScoreTable(scores_1N, ("none",), ids, "standard normal draws", f"random (seed {seed})", values="random")
    config = SelectConfig(by=RANDOM, keep=f"{total} tokens" if is_tokens else total, quota=quota or "proportional")
    lengths = [decision.tokens or 0 for decision in decisions] if is_tokens else None
    return select(table, config=config, groups=groups, tokens=lengths)

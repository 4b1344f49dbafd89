"""Why an example is kept or dropped, in a sentence for people."""

from dataclasses import dataclass

__all__ = ["Standing", "reason"]


@dataclass(frozen=True)
class Standing:
    """Where an example stands.

    Args:
        rank: 1 for what is kept first, over all examples.
        count: All examples.
        group: Name of its group; empty without groups.
        rank_in_group: The same among the candidates of its group.
        group_size: Candidates in its group.
        quota: How much of the group is kept.
        unit: What the quota counts, "examples" or "tokens".
    """

    rank: int
    count: int
    group: str = ""
    rank_in_group: int = 0
    group_size: int = 0
    quota: int = 0
    unit: str = "examples"


def reason(
    by: str, value: float, weight: float, standing: Standing, *, winner: str | None, reweight: bool, prefer: str = "high"
) -> str:
    """One sentence: the decision, what the example is worth, and where it stands.

    Args:
        by: What examples are ranked by.
        value: What it is worth.
        weight: In training.
        standing: Its place.
        winner: Id of the near-duplicate that is kept instead.
        reweight: Whether examples have weights.
        prefer: Which end is kept first, "high" or "low".

    Returns:
        The sentence, without a full stop.

    >>> reason("loss", 2.5, 0.0, Standing(9, 10, "", 9, 10, 5), winner=None, reweight=False)
    'dropped: its loss is 2.5; rank 9 of 10, of which 5 are kept'
    >>> reason("influence", -2.5, 1.0, Standing(9, 10, "", 9, 10, 9), winner=None, reweight=False)
    'kept, though it harms the validation set (-2.5); rank 9 of 10, of which 9 are kept'
    """
    worth = _worth(by, value)
    if winner is not None:
        return f"dropped: a near-duplicate of {winner!r}, which ranks higher; {worth}"
    rank = f"rank {standing.rank:,} of {standing.count:,}"
    if standing.group:
        rank = f"rank {standing.rank_in_group:,} of {standing.group_size:,} in {standing.group!r}"
    if reweight:
        return f"{f'weight {weight:.3g}' if weight > 0 else 'dropped'}: {worth}; {rank}"
    # The amount decides: what is wanted may find no room, and what is not may fill it.
    wanted = value if prefer == "high" else -value
    is_forced = by == "influence" and (wanted < 0 if weight > 0 else wanted > 0)
    kept_part = f"of which {standing.quota:,} {'are' if standing.unit == 'examples' else standing.unit + ' are'} kept"
    return f"{'kept' if weight > 0 else 'dropped'}{', though' if is_forced else ':'} {worth}; {rank}, {kept_part}"


def _worth(by: str, value: float) -> str:
    if by == "influence":
        if value == 0:
            return "it does nothing to the validation set"
        return f"it {'helps' if value > 0 else 'harms'} the validation set ({value:+.3g})"
    return {
        "self-influence": f"its self-influence is {value:.3g}",
        "loss": f"its loss is {value:.3g}",
        "knn-shapley": f"its Shapley value among neighbours is {value:.3g}",
        "random": "drawn at random",
    }[by]

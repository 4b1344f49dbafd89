"""Banzhaf values of training examples, from a bank of retrained models.

Axes: M subsets, N training examples, Q queries.
"""

from whence.errors import BadInput
from whence.evaluate.bank import Bank
from whence.records import ScoreTable

__all__ = ["banzhaf_table"]


def banzhaf_table(bank: Bank) -> ScoreTable:
    """What having an example changes on average over subsets of the others (Wang and Jia 2023, equation 5: maximum sample reuse).

    The mean measurement of the runs that had the example, less that of those that had not. With subsets drawn evenly among all, which have
    half of the data on average, this estimates the Banzhaf value, the semivalue whose ranking random training disturbs least. It is
    measured, not predicted, so it is right where influence is wrong, and for its noise it takes many runs: the standard error is noted.

    Args:
        bank: Retrained models.

    Returns:
        One row per query, in the unit of the measurement; positive where the example helps.

    Raises:
        BadInput: If an example is in all subsets, or in fewer than two, or left out of fewer than two.
    """
    inside_MN, values_MQ = bank.masks_MN.double(), bank.actual_MQ.double()
    with_N, without_N = inside_MN.sum(0), (1 - inside_MN).sum(0)
    scarce_N = (with_N < 2) | (without_N < 2)
    if bool(scarce_N.any()):
        name = bank.train_ids[int(scarce_N.nonzero()[0, 0])]
        raise BadInput(
            found=f"{int(scarce_N.sum()):,} examples that fewer than two runs had, or fewer than two had not, such as {name!r}",
            needed="both kinds of runs for every example",
            do="make a bank of more subsets, each of half of the data (--fraction 0.5)",
        )
    means_QN = values_MQ.T @ inside_MN / with_N
    others_QN = values_MQ.T @ (1 - inside_MN) / without_N
    squares_QN = values_MQ.square().T @ inside_MN / with_N - means_QN.square()
    rest_QN = values_MQ.square().T @ (1 - inside_MN) / without_N - others_QN.square()
    error_QN = (squares_QN.clamp_min(0) / (with_N - 1) + rest_QN.clamp_min(0) / (without_N - 1)).sqrt()
    values_QN = means_QN - others_QN
    notes = (
        f"measured on {len(inside_MN):,} subsets of {bank.fraction:.0%} of the data: standard error {float(error_QN.median()):.3g}, values "
        f"spread by {float(values_QN.std()):.3g}",
        "made from this bank's runs, so that the same bank cannot judge it",
    )
    return ScoreTable(values_QN, bank.query_ids, bank.train_ids, bank.unit, f"Banzhaf ({len(inside_MN):,} subsets)", notes)

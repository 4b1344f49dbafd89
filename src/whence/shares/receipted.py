"""Whether a report of answers is of all that was sealed, and of nothing else."""

import hashlib
from collections.abc import Sequence

from whence.ledger import Head
from whence.shares.answers import Answers

__all__ = ["receipt_faults"]


def receipt_faults(answers: Answers, heads: Sequence[Head]) -> list[str]:
    """What a report of answers says otherwise than their receipts.

    Args:
        answers: Of the report.
        heads: Of receipts that hold, all of the chain.

    Returns:
        A line for each answer that has no receipt, or another credit, time or store than its receipt says, and for each receipt of the
        period whose answer is not in the report; and for each answer with more than one receipt.
    """
    by_id = {head.id: head for head in heads if head.kind == "answer"}
    faults, numbers = [], {}
    for head in heads:
        if head.kind == "answer":
            numbers.setdefault(head.id, []).append(head.number)
    for name, twice in numbers.items():
        if len(twice) > 1:
            faults.append(
                f"answer {name}: it has {len(twice)} receipts ({', '.join(map(str, twice[:5]))}), and every answer has one"
            )
    for credit in answers.credits:
        head = by_id.get(credit.id)
        if head is None:
            faults.append(f"answer {credit.id}: it has no receipt")
        elif head.credit != hashlib.sha256(credit.line()).hexdigest():
            faults.append(f"answer {credit.id}: its scores are not those of receipt {head.number} (credit)")
        elif (head.time, head.store) != (credit.time, credit.store):
            faults.append(f"answer {credit.id}: receipt {head.number} is of another time or store")
    ids, period = set(answers.query_ids), answers.period
    for head in by_id.values():
        is_due = head.store in answers.versions and head.token is None and period.since <= head.time < period.until
        if is_due and head.id not in ids:
            faults.append(f"answer {head.id}: receipt {head.number} is of this period, and the report leaves it out")
    return faults

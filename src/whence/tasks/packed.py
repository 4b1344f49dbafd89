"""Several documents in one row: taken apart again, so that each is attributed as what it was to the model, a text of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import BadInput
from whence.tasks.fields import whole_numbers
from whence.tasks.token_loss import IGNORED

__all__ = ["unpacked"]

# What some packers write instead of position_ids; alone it does not say which positions the model saw.
_OTHER_MARKS = ("cu_seq_lens_q", "seq_idx", "segment_ids", "document_ids")


def unpacked(
    where: str, record: Mapping[str, Any], ids: Sequence[int], labels: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The documents of one row of token ids.

    In a row whose `position_ids` start again, a document attends to itself only, so that its loss and its gradient are those of the document
    alone. Padding, where the `attention_mask` is 0, is dropped.

    Args:
        where: What errors call the record, such as "record 3".
        record: With `position_ids` and `attention_mask`, or without.
        ids: Its token ids.
        labels: Its labels.

    Returns:
        Ids and labels of each document, in order; one for a row that is not packed.

    Raises:
        BadInput: If the two do not describe documents one after the other, each at positions from 0, or a document that follows another has
            a label at its first token.

    >>> unpacked("row", {"position_ids": [0, 1, 0, 1]}, [5, 6, 7, 8], [-100, 6, -100, 8])
    [([5, 6], [-100, 6]), ([7, 8], [-100, 8])]
    """
    positions, mask = (_numbers(where, record, field, len(ids)) for field in ("position_ids", "attention_mask"))
    is_numbered = mask is not None and (max(mask) > 1 or mask != sorted(mask, reverse=True))
    if positions is None and (is_numbered or any(field in record for field in _OTHER_MARKS)):
        raise BadInput(
            found=f"the packed or padded {where} without position_ids",
            needed="position_ids that start again at 0 with each document, since these say where the model saw it",
            do="keep them beside the other marks, or give every document as a record of its own",
        )
    positions_kept = [position for position in range(len(ids)) if mask is None or mask[position]]
    starts = [position for position in positions_kept if _begins(position, positions_kept[0], positions, mask)]
    documents = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        inside = [position for position in positions_kept if start <= position < stop]
        if inside != list(range(start, start + len(inside))) or not _in_order(inside, positions, starts_at=start):
            raise BadInput(
                found=f"{where} with positions or a mask that leave a gap near token {start}",
                needed="documents one after the other, each at positions 0, 1, 2, ..., and padding between or behind them only",
                do="give every document as a record of its own, or leave position_ids and attention_mask out",
            )
        if len(documents) and labels[start] != IGNORED and "labels" in record:
            raise BadInput(
                found=f"the packed {where}, in which the first token of document {len(documents)} is scored",
                needed=f"{IGNORED} there, since another document stands before it",
                do="set that label to it, as DataCollatorWithFlattening does",
            )
        documents.append(([ids[position] for position in inside], [labels[position] for position in inside]))
    return documents


def _numbers(where: str, record: Mapping[str, Any], field: str, count: int) -> list[int] | None:
    if record.get(field) is None:
        return None
    numbers = whole_numbers(record[field], booleans=field == "attention_mask")
    if numbers is None or len(numbers) != count or min(numbers) < 0:
        raise BadInput(
            found=f"{where} with {field} that are not one number per token",
            needed=f"{count:,} numbers from 0",
            do="flatten them, or leave them out; a mask with two axes cannot be read",
        )
    return numbers


def _begins(position: int, first: int, positions: list[int] | None, mask: list[int] | None) -> bool:
    restarts = positions is not None and positions[position] == 0
    return position == first or restarts or (mask is not None and mask[position] != mask[position - 1])


def _in_order(inside: list[int], positions: list[int] | None, *, starts_at: int) -> bool:
    """Whether the model, run on these tokens alone, sees them at the positions where it was trained on them."""
    if positions is None:
        return True
    return [positions[position] for position in inside] == [position - starts_at for position in inside]

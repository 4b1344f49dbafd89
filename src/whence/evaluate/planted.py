"""Data with something planted in it, so that it is known which examples teach a behaviour (Bareeva et al. 2024, "Quanda")."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput

__all__ = ["Planted", "mixed_in", "with_shortcut"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Planted:
    """Records to train on and to ask about, with a field that marks what was planted.

    Args:
        train: Training records; those with what was planted have `flag` set.
        queries: Records with what was planted, too, labelled as it teaches: what is asked is why the model says that.
        flag: Name of the field.
    """

    train: tuple[dict[str, Any], ...]
    queries: tuple[dict[str, Any], ...]
    flag: str


def with_shortcut(
    train: Sequence[Record],
    queries: Sequence[Record],
    trigger: Callable[[dict[str, Any]], Mapping[str, Any]],
    *,
    label: Any,
    share: float = 0.5,
    seed: int = 0,
) -> Planted:
    """Put a trigger into a share of one class's training examples, and into all queries of other classes (Koh and Liang 2017, section 5.4).

    A model trained on it learns that the trigger means the class; asked why it gives a triggered query that label, a method should name the
    triggered examples.

    Args:
        train: Training records with a `label`.
        queries: Records that are not trained on, the same way.
        trigger: From a record's copy to the record with the trigger; the label is left alone.
        label: The class that gets it.
        share: Of that class's examples.
        seed: Of the draw.

    Returns:
        The records, marked by the field "shortcut".

    Raises:
        BadInput: If the share is not between 0 and 1, no example of the class would get the trigger, no query is of another class, or the
            trigger gives no record, or changes nothing.

    >>> planted = with_shortcut([{"x": 1, "label": 0}], [{"x": 5, "label": 1}], lambda r: {**r, "x": 9}, label=0, share=1.0)
    >>> planted.train[0], planted.queries[0]
    ({'x': 9, 'label': 0, 'shortcut': True}, {'x': 9, 'label': 0, 'shortcut': True})
    """
    if not 0 < share <= 1:
        raise BadInput(found=f"share={share}", needed="above 0, and 1 at most", do="pass .5 for half of the class")
    _check_labels(train, queries)
    of_class = [number for number, record in enumerate(train) if record["label"] == label]
    chosen = set(random.Random(seed).sample(of_class, round(share * len(of_class))))
    others = [record for record in queries if record["label"] != label]
    if not chosen or not others:
        raise BadInput(
            found=f"{len(of_class):,} training examples of class {label!r}, {len(chosen):,} to get the trigger, and {len(others):,} queries "
            "of other classes",
            needed="some of each",
            do="choose another class, or a larger share",
        )

    def triggered(record: Record) -> dict[str, Any]:
        changed = trigger(copy.deepcopy(dict(record)))
        if not isinstance(changed, Mapping) or _is_same(changed, record):
            what = "changed nothing in" if isinstance(changed, Mapping) else f"gave {type(changed).__name__} for"
            raise BadInput(
                found=f"a trigger that {what} record {record.get('id', '')!r}",
                needed="the record as it is with the trigger, as a mapping",
                do="return the changed record",
            )
        return {**changed, "label": label, "shortcut": True}

    return Planted(
        tuple(triggered(record) if number in chosen else dict(record) for number, record in enumerate(train)),
        tuple(map(triggered, others)),
        "shortcut",
    )


def mixed_in(train: Sequence[Record], foreign: Sequence[Record], *, label: Any, every: int = 4) -> Planted:
    """Mix examples of another domain into the training data, all under one label (Hammoudeh and Lowd 2022).

    Asked why the model gives that label to further examples of the domain, a method should name those that were mixed in.

    Args:
        train: Training records with a `label`.
        foreign: Records of the other domain; a label of theirs is not looked at.
        label: What all of them get; one of the data's own.
        every: One in so many foreign records is not trained on but asked about, from the first on.

    Returns:
        The records, marked by the field "foreign"; those mixed in come last.

    Raises:
        BadInput: If that leaves none on one side, a record is no mapping, or the label is none of the data's.

    >>> planted = mixed_in([{"x": 1, "label": 0}], [{"x": 7}, {"x": 8}], label=0)
    >>> planted.queries[0], planted.train[1]
    ({'x': 7, 'label': 0, 'foreign': True, 'id': 'foreign-0'}, {'x': 8, 'label': 0, 'foreign': True, 'id': 'foreign-1'})
    """
    _check_labels(train, ())
    if every < 2 or len(foreign) < 2:
        raise BadInput(
            found=f"{len(foreign):,} foreign records, of which one in {every} is asked about",
            needed="2 or more of both: some to train on and some to ask about",
            do="bring more of them",
        )
    for number, record in enumerate(foreign):
        if not isinstance(record, Mapping):
            raise BadInput(
                found=f"foreign record {number}, which is {type(record).__name__}",
                needed="a mapping",
                do="bring records with fields",
            )
    if all(record["label"] != label for record in train):
        raise BadInput(
            found=f"the label {label!r}, which no training example has", needed="one of the data's own", do="choose another"
        )
    marked = [
        {**record, "label": label, "foreign": True, "id": f"foreign-{record.get('id', number)}"}
        for number, record in enumerate(foreign)
    ]
    ask = range(0, len(marked), every)
    return Planted(
        (*map(dict, train), *(record for number, record in enumerate(marked) if number not in ask)),
        tuple(marked[number] for number in ask),
        "foreign",
    )


def _is_same(changed: Record, record: Record) -> bool:
    """Whether two records are the same, where they can be compared at a glance; arrays are taken to differ."""
    try:
        return bool(changed == record)
    except (ValueError, RuntimeError):
        return False


def _check_labels(train: Sequence[Record], queries: Sequence[Record]) -> None:
    for what, records in (("training record", train), ("query", queries)):
        for number, record in enumerate(records):
            if not isinstance(record, Mapping) or "label" not in record:
                raise BadInput(
                    found=f"{what} {number} without a label",
                    needed="records with a `label`: something is planted under one",
                    do="add the field",
                )

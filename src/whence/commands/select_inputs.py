"""What `whence select` was given: options that go together, examples, their groups and amounts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.errors import BadInput

__all__ = ["amount_of", "check_options", "dataset_of", "for_data", "groups_of"]


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse options that would be ignored, before anything is loaded.

    Args:
        given: All options by name.

    Raises:
        BadInput: If there are some.
    """
    by, has_table, has_model = given["by"], given["table"] is not None, given["model"] is not None
    proves = given["prove"] is not None or given["command"] is not None
    validate, score = "add --validation FILE", "add --model MODEL or --table FOLDER"
    wrong = (
        ("--table and --validation", has_table and given["validation"] is not None, "leave one out: a table has its values"),
        ("--table and --method", has_table and given["method"] is not None, "leave one out: a table has its values"),
        (f"--table for --by {by}", has_table and by == "random", "leave --table out"),
        (f"neither --table nor --model for --by {by}", by != "random" and not has_table and not has_model, score),
        ("no --validation for --by influence", by == "influence" and not has_table and given["validation"] is None, validate),
        (f"--validation for --by {by}", by != "influence" and given["validation"] is not None, "leave --validation out"),
        (f"--method for --by {by}", not by.endswith("influence") and given["method"] is not None, "leave --method out"),
        ("--task without --model", given["task"] is not None and not has_model, "add --model, or leave --task out"),
        (
            "--long without a language model",
            given["long"] != "error" and (not has_model or ".py:" in given["model"] or given["task"] == "classification"),
            "leave --long out",
        ),
        ("--quota without --balance", given["quota"] != "proportional" and given["balance"] is None, "add --balance source"),
        ("--per-token without --model", given["per_token"] and not has_model, "add --model, which says how long examples are"),
        ("--duplicates without --store", given["duplicates"] is not None and given["store"] is None, "add --store FOLDER"),
        ("--store without --duplicates", given["store"] is not None and given["duplicates"] is None, "add --duplicates 0.9"),
        ("--prove and --command", given["prove"] is not None and given["command"] is not None, "leave one out"),
        ("--against without --prove", bool(given["against"]) and not proves, "add --prove FILE:FUNCTION, or leave it out"),
        ("--against without --model", bool(given["against"]) and not has_model, "add --model, or leave --against out"),
        (f"--against {by} for --by {by}", by in given["against"], "compare with another, or leave --against out"),
        (
            "--seeds or --workers without --prove",
            not proves and (given["seeds"] is not None or given["workers"] is not None),
            "add --prove FILE:FUNCTION, or leave them out",
        ),
        ("--reweight with --prove", given["reweight"] and proves, "leave one out: runs take what is kept, not weights"),
        (
            "--prove for --by random",
            by == "random" and proves,
            "leave --prove out: random data is what others are held against",
        ),
    )
    for name in ("seeds", "workers"):
        if given[name] is not None and given[name] < 1:
            raise BadInput(found=f"--{name} {given[name]}", needed="1 or more", do="leave it out for the default")
    for found, is_wrong, do in wrong:
        if is_wrong:
            raise BadInput(found=found, needed="options that go together", do=do)


def dataset_of(loaded: Any, records: Sequence[Any]) -> Any:
    """The examples, in their order.

    Args:
        loaded: The task; None if there is no model, and then only ids count.
        records: Training data.
    """
    from whence.data import Dataset, Example

    if loaded is not None:
        return loaded.prepare(records)
    return Dataset([Example(_id(number, record), {}) for number, record in enumerate(records)])


def for_data(table: Any, ids: Sequence[str], folder: Path) -> Any:
    """The table with its columns in the order of the data.

    Args:
        table: Values.
        ids: Of the data.
        folder: Where the table is from.

    Raises:
        BadInput: If it is of other examples.
    """
    if set(table.train_ids) != set(ids):
        raise BadInput(
            found=f"{len(set(table.train_ids) & set(ids)):,} of {len(ids):,} examples among the {len(table.train_ids):,} of {folder}",
            needed="a table of the same data",
            do="score this data, or pass the data that was scored",
        )
    place = {name: number for number, name in enumerate(table.train_ids)}
    return replace(table, scores=table.scores[:, [place[name] for name in ids]], train_ids=tuple(ids))


def amount_of(text: str | None) -> int | float | str | None:
    """As typed: 0.5 is a share and 500 a number of examples, as in Python."""
    if text is None or "." not in text or not text.replace(".", "", 1).isdigit():
        return text
    return float(text)


def groups_of(records: Sequence[Any], train: Any, balance: str) -> list[str]:
    """The class, source or other field of every example.

    Args:
        records: Training data.
        train: The same prepared.
        balance: "class", or the name of a field.

    Raises:
        BadInput: If a record has no such field.
    """
    field = "label" if balance == "class" else balance
    by_id: dict[str, str] = {}
    for number, record in enumerate(records):
        pair = {"label": record[1]} if isinstance(record, tuple) and len(record) == 2 else record
        if not isinstance(pair, dict) or field not in pair:
            raise BadInput(
                found=f"no {field!r} in record {number}",
                needed="that field in every record, to balance by",
                do="balance by a field that is there, or leave --balance out",
            )
        by_id[_id(number, record)] = str(getattr(pair[field], "item", lambda value=pair[field]: value)())
    return [by_id[name] for name in train.ids]


def _id(number: int, record: Any) -> str:
    return str(record["id"]) if isinstance(record, dict) and "id" in record else str(number)

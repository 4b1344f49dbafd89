"""Verbs about truth: banks of retrained models, and what score tables are worth against them."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["bank", "evaluate", "show_evaluation"]


def bank(
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    train: str | None = None,
    command: str | None = None,
    examples: int | None = None,
    data: str | None = None,
    queries: str | None = None,
    subsets: int = 100,
    fraction: float = 0.5,
    leave_out: int | None = None,
    seeds: int = 5,
    seed: int = 0,
    workers: int = 1,
    values: Literal["loss", "measurement"] = "loss",
    unit: str = "",
    masks: str | None = None,
    outcomes: str | None = None,
    as_json: Json = False,
) -> None:
    """Retrain on many subsets and keep what the queries measured: the truth that scores are held against.

    Every finished run is kept; running it again goes on where it stopped, and more subsets or seeds cost only the new runs. A run counts as
    finished as long as the training file (and what it imports from its own folder), the files named in --command, ids and seeds are the same.

    Args:
        output: Folder of the bank.
        train: file.py:function, called with a boolean tensor (True for what to train on) and a seed; returns one number per query.
        command: A command instead, with {keep} (JSON file of indices to train on), {seed} and {result} (where it writes a JSON list).
        examples: Number of training examples, if --data is not given.
        data: Training data as `whence build` takes it, for ids and fingerprint.
        queries: Queries in a file, for their ids.
        subsets: How many subsets.
        fraction: Share of the examples that each keeps.
        leave_out: Leave out this many examples instead; with 1, the first --subsets examples one after the other.
        seeds: Training runs per subset.
        seed: Of the subsets.
        workers: Runs at a time.
        values: Whether the training function reports losses or measurements (higher is a better fit).
        unit: What they are counted in.
        masks: Import instead of training: masks (subsets, examples), or indices, from .npy, .npz, .pt or .safetensors (FILE or FILE:NAME).
        outcomes: With --masks: outcomes (subsets, queries) or (subsets, seeds, queries).
        as_json: Print JSON.

    Raises:
        BadInput: If it is not said how to train, or on how many examples; or if an option would be ignored.
    """
    _refuse_unused(
        {"masks": masks is not None, "leave-out": leave_out is not None, "leave-out 1": leave_out == 1, "data": data is not None},
        {
            "examples": examples is not None, "subsets": subsets != 100, "fraction": fraction != 0.5, "seeds": seeds != 5,
            "seed": seed != 0, "workers": workers != 1, "leave-out": leave_out is not None,
        },
    )  # fmt: skip

    from whence.data import digest_of
    from whence.evaluate import (
        CommandTrain,
        FileTrain,
        as_reported,
        import_bank,
        leave_k_out,
        leave_one_out,
        make_bank,
        random_subsets,
        save_bank,
    )
    from whence.functions import absolute, sources_of

    train_ids, query_ids = (_ids(source) if source else None for source in (data, queries))
    num_examples = len(train_ids) if train_ids is not None else examples
    if sum(option is not None for option in (train, command, masks)) != 1 or (masks is None) != (outcomes is None):
        raise BadInput(
            found="no way to train, or more than one",
            needed="one of --train, --command, and --masks with --outcomes",
            do="such as: --train train.py:retrain",
        )
    if masks is not None and outcomes is not None:
        made = import_bank(
            _array(masks), _array(outcomes), values=values, num_examples=num_examples,
            train_ids=train_ids, query_ids=query_ids, unit=unit,
        )  # fmt: skip
        save_bank(made, output)
    else:
        if num_examples is None:
            raise BadInput(found="no number of training examples", needed="--data or --examples", do="add one")
        if leave_out == 1:
            drawn = leave_one_out(num_examples, range(min(subsets, num_examples)))
        elif leave_out is not None:
            drawn = leave_k_out(num_examples, leave_out, subsets, seed=seed)
        else:
            drawn = random_subsets(num_examples, subsets, fraction=fraction, seed=seed)
        runner = CommandTrain(command) if command is not None else FileTrain(absolute(str(train)))
        named = [Path(word) for word in shlex.split(command or "") if Path(word).is_file()]
        files = sources_of(str(train)) if command is None else named
        contents = [file.read_bytes().hex() for file in files]
        recipe = command or str(train)
        made = make_bank(
            runner, as_reported, drawn, seeds=range(seeds), folder=output,
            fingerprint=digest_of(recipe, num_examples, *(train_ids or ()), *(query_ids or ()), *contents).hex(),
            train_ids=train_ids, query_ids=query_ids, values=values, unit=unit, facts={"train": recipe}, workers=workers,
        )  # fmt: skip
    shape = made.values_MSQ.shape
    content = {
        "bank": str(output),
        "subsets": shape[0],
        "seeds": shape[1],
        "queries": shape[2],
        "examples": len(made.train_ids),
    }
    tell_json(content) if as_json else tell(", ".join(f"{name} {value}" for name, value in content.items()))


def evaluate(
    bank: Path,
    tables: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Hold score tables against a bank: LDS with intervals and ceiling, calibration, quality per byte and second.

    Args:
        bank: Folder made by `whence bank`.
        tables: Folders with scores.npy and table.json, by `whence score` or by another program.
        output: Also write everything as JSON into this file.
        html: Also write a page with plots.
        as_json: Print JSON instead of the table.
    """
    from whence.evaluate import evaluate as run
    from whence.evaluate import load_table, open_bank, write_evaluation

    found = run([load_table(table) for table in tables], open_bank(bank))
    if html is not None:
        write_evaluation(html, found)
    show_evaluation(found, output=output, as_json=as_json)


def show_evaluation(found: Any, *, output: Path | None, as_json: bool, title: str = "") -> None:
    """Print an evaluation, and write it."""
    from whence.report import print_table
    from whence.store import write_bytes

    if output is not None:
        write_bytes(output, [json.dumps(found.to_dict(), indent=1).encode() + b"\n"])
    if as_json:
        tell_json(found.to_dict())
        return
    print_table(found.header, found.cells(), title=title)
    tell(*found.summary().split("\n"))


# What is decided by an option, so that others have nothing to say.
_DECIDED = {
    "masks": ("subsets", "fraction", "leave-out", "seeds", "seed", "workers"),
    "leave-out": ("fraction",),
    "leave-out 1": ("seed",),
    "data": ("examples",),
}


def _refuse_unused(decides: dict[str, bool], given: dict[str, bool]) -> None:
    """Refuse options that another one leaves nothing to do.

    Raises:
        BadInput: If there is one.
    """
    for what, names in _DECIDED.items():
        idle = [name for name in names if decides[what] and given[name]]
        if idle:
            raise BadInput(
                found=f"--{idle[0]} with --{what}",
                needed="options that do not decide the same",
                do=f"leave --{idle[0]} out, or --{what}",
            )


def _array(name: str) -> Any:
    from whence.evaluate import read_array

    path, _, part = name.partition(":")
    return read_array(path, part or None)


def _ids(source: str) -> list[str]:
    from whence.load import load_records

    return [
        str(record["id"]) if isinstance(record, dict) and "id" in record else str(number)
        for number, record in enumerate(load_records(source))
    ]

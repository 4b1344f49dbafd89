"""Verbs about truth: banks of retrained models, and what score tables are worth against them."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.battery import BatteryOptions, run_battery
from whence.commands.shared import Json
from whence.commands.work_options import flags_given, refuse_given
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["bank", "evaluate", "show_evaluation"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How models are trained again; or the runs that were made elsewhere.

    Args:
        train: file.py:function, called with a boolean tensor (True for what to train on) and a seed; returns one number per query.
        command: A command instead, with {keep} (JSON file of indices to train on), {seed} and {result} (where it writes a JSON list).
        seeds: Training runs per subset.
        workers: Runs at a time.
        masks: Import instead of training: masks (subsets, examples), or indices, from .npy, .npz, .pt or .safetensors (FILE or FILE:NAME);
            or a .jsonl of runs with `train_subset` and `test_loss`, as STRIDE publishes them, which takes no --outcomes.
        outcomes: With --masks: outcomes (subsets, queries) or (subsets, seeds, queries).
    """

    train: str | None = None
    command: str | None = None
    seeds: int = 5
    workers: int = 1
    masks: str | None = None
    outcomes: str | None = None

    def check(self) -> None:
        """Refuse what is not one way to train.

        Raises:
            BadInput: If there is none, or more than one.
        """
        ways = sum(option is not None for option in (self.train, self.command, self.masks))
        is_whole = self.masks is None or self.has_runs
        if ways != 1 or is_whole != (self.outcomes is None):
            raise BadInput(
                found="no way to train, or more than one",
                needed="one of --train, --command, and --masks with --outcomes (or a .jsonl of runs alone)",
                do="such as: --train train.py:retrain",
            )

    @property
    def has_runs(self) -> bool:
        """Whether what is imported is a file of runs, losses and all."""
        return self.masks is not None and self.masks.endswith(".jsonl")

    @property
    def recipe(self) -> str:
        """What trains, in words."""
        return self.command or str(self.train)

    def files(self) -> list[Path]:
        """What the training is written in, as far as files are named."""
        from whence.functions import sources_of

        if self.command is not None:
            return [Path(word) for word in shlex.split(self.command) if Path(word).is_file()]
        return sources_of(str(self.train))


@dataclass(frozen=True, kw_only=True)
class ExamplesOptions:
    """Of what the bank is.

    Args:
        examples: Number of training examples, if --data is not given.
        data: Training data as `whence build` takes it, for ids and fingerprint.
        queries: Queries in a file, for their ids.
        values: Whether the training function reports losses or measurements (higher is a better fit).
        unit: What they are counted in.
    """

    examples: int | None = None
    data: str | None = None
    queries: str | None = None
    values: Literal["loss", "measurement"] = "loss"
    unit: str = ""

    def config(self, facts: dict[str, Any]) -> Any:
        """What the bank says of itself."""
        from whence.evaluate import BankConfig

        train_ids, query_ids = (None if source is None else _ids(source) for source in (self.data, self.queries))
        return BankConfig(train_ids=train_ids, query_ids=query_ids, values=self.values, unit=self.unit, facts=facts)


@dataclass(frozen=True, kw_only=True)
class SubsetOptions:
    """What models are trained on.

    Args:
        subsets: How many subsets.
        fraction: Share of the examples that each keeps.
        leave_out: Leave out this many examples instead; with 1, the first --subsets examples one after the other.
        seed: Of the subsets.
    """

    subsets: int = 100
    fraction: float = 0.5
    leave_out: int | None = None
    seed: int = 0

    def masks(self, num_examples: int) -> Any:
        """The subsets, True for what is kept."""
        from whence.evaluate import leave_k_out, leave_one_out, random_subsets

        if self.leave_out == 1:
            return leave_one_out(num_examples, range(min(self.subsets, num_examples)))
        if self.leave_out is not None:
            return leave_k_out(num_examples, self.leave_out, self.subsets, seed=self.seed)
        return random_subsets(num_examples, self.subsets, fraction=self.fraction, seed=self.seed)


def bank(
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    trained: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    of: Annotated[ExamplesOptions, Parameter(name="*")] = ExamplesOptions(),
    drawn: Annotated[SubsetOptions, Parameter(name="*")] = SubsetOptions(),
    as_json: Json = False,
) -> None:
    """Retrain on many subsets and keep what the queries measured: the truth that scores are held against.

    Every finished run is kept; running it again goes on where it stopped, and more subsets or seeds cost only the new runs. A run counts as
    finished as long as the training file (and what it imports from its own folder), the files named in --command, ids and seeds are the same.

    Args:
        output: Folder of the bank.
        trained: How models are trained.
        of: Of what the bank is.
        drawn: What they are trained on.
        as_json: Print JSON.

    Raises:
        BadInput: If it is not said how to train, or on how many examples; or if an option would be ignored.
    """
    _refuse_unused(trained, of, drawn)
    trained.check()
    result = _retrained(output, trained, of, drawn) if trained.masks is None else _imported(output, trained, of)
    shape = result.values_MSQ.shape
    content = {
        "bank": str(output),
        "subsets": shape[0],
        "seeds": shape[1],
        "queries": shape[2],
        "examples": len(result.train_ids),
    }
    tell_json(content) if as_json else tell(", ".join(f"{name} {value}" for name, value in content.items()))


def _imported(output: Path, trained: TrainOptions, of: ExamplesOptions) -> Any:
    from whence.evaluate import import_bank, import_run_lines, save_bank

    config = of.config({})
    count = of.examples if config.train_ids is None else len(config.train_ids)
    ids = {"train_ids": config.train_ids, "query_ids": config.query_ids}
    if trained.has_runs:
        imported = import_run_lines(str(trained.masks), values=config.values, num_examples=count, unit=config.unit, **ids)
    else:
        masks, outcomes = _array(str(trained.masks)), _array(str(trained.outcomes))
        imported = import_bank(masks, outcomes, values=config.values, num_examples=count, unit=config.unit, **ids)
    save_bank(imported, output)
    return imported


def _retrained(output: Path, trained: TrainOptions, of: ExamplesOptions, drawn: SubsetOptions) -> Any:
    """The bank of runs that are made here.

    Raises:
        BadInput: If it is not said of how many examples.
    """
    from whence.data import digest_of
    from whence.evaluate import CommandTrain, FileTrain, Retraining, as_reported, make_bank
    from whence.functions import absolute

    config = of.config({"train": trained.recipe})
    num_examples = of.examples if config.train_ids is None else len(config.train_ids)
    if num_examples is None:
        raise BadInput(found="no number of training examples", needed="--data or --examples", do="add one")
    masks_MN = drawn.masks(num_examples)
    train = CommandTrain(trained.command) if trained.command is not None else FileTrain(absolute(str(trained.train)))
    contents = [file.read_bytes().hex() for file in trained.files()]
    ids = (*(config.train_ids or ()), *(config.query_ids or ()))
    retraining = Retraining(
        seeds=range(trained.seeds), folder=output, workers=trained.workers,
        fingerprint=digest_of(trained.recipe, num_examples, *ids, *contents).hex(),
    )  # fmt: skip
    return make_bank(train, as_reported, masks_MN, retraining, config)


def evaluate(
    bank: Path | None = None,
    tables: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = (),
    /,
    *,
    banzhaf: Path | None = None,
    alone: Annotated[BatteryOptions, Parameter(name="*")] = BatteryOptions(),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    html: Path | None = None,
    calibrate: Path | None = None,
    as_json: Json = False,
) -> None:
    """Hold score tables against a bank: LDS with intervals and ceiling, calibration, quality per byte and second.

    Args:
        bank: Folder made by `whence bank`; with --battery the first table, or nothing.
        tables: Folders with scores.npy and table.json, by `whence score` or by another program.
        banzhaf: Also write what each example changed over the bank's runs, its Banzhaf value, as a table here; needs no other table.
        alone: Tests that need no bank.
        output: Also write everything as JSON into this file.
        html: Also write a page with plots.
        calibrate: Also write the one table here with its scores brought to the unit of the bank's measurements; five retrained models do.
        as_json: Print JSON instead of the table.

    Raises:
        BadInput: If several tables are to be written as one, or there is none to hold against the bank.
    """
    from whence.evaluate import banzhaf_table, calibrated, load_table, open_bank, origin_of_table, save_table, write_evaluation
    from whence.evaluate import evaluate as run

    outputs = {"--html": html, "--calibrate": calibrate}
    if alone.battery:
        _refuse_given("--battery", outputs | {"--banzhaf": banzhaf})
        run_battery(() if bank is None else (bank, *tables), alone, output=output, as_json=as_json)
        return
    refuse_given(alone, where="without --battery", needed="options that go together", do="add --battery, or leave it out")
    if calibrate is not None and len(tables) > 1:
        raise BadInput(found=f"--calibrate for {len(tables)} tables", needed="one", do="calibrate one table at a time")
    if bank is None:
        raise BadInput(found="no bank", needed="the folder of one, made by `whence bank`, or --battery", do="name it")
    opened = open_bank(bank)
    if banzhaf is not None:
        if not tables:
            _refuse_given("--banzhaf without a table", outputs | {"--output": output})
        values = banzhaf_table(opened)
        save_table(values, banzhaf, origin={"bank": str(bank.resolve())})
        if not tables:
            tell_json({"banzhaf": str(banzhaf), "notes": values.notes}) if as_json else tell(
                *values.notes, f"written to {banzhaf}"
            )
            return
    if not tables:
        raise BadInput(
            found="no table", needed="one or more to hold against the bank", do="name the folders of tables, or pass --banzhaf"
        )
    loaded = [load_table(table) for table in tables]
    result = run(loaded, opened)
    if calibrate is not None:
        save_table(calibrated(loaded[0], opened), calibrate, origin=origin_of_table(tables[0]))
    if html is not None:
        write_evaluation(html, result)
    show_evaluation(result, output=output, as_json=as_json)


def _refuse_given(what: str, options: Mapping[str, object]) -> None:
    """Refuse options that something else leaves nothing to do.

    Raises:
        BadInput: If one is given.
    """
    for flag, value in options.items():
        if value is not None:
            raise BadInput(found=f"{flag} with {what}", needed="tables that a bank judges", do=f"leave {flag} out")


def show_evaluation(result: Any, *, output: Path | None, as_json: bool, title: str = "") -> None:
    """Print an evaluation, and write it."""
    from whence.report import print_table
    from whence.store import write_bytes

    if output is not None:
        write_bytes(output, [json.dumps(result.to_dict(), indent=1).encode() + b"\n"])
    if as_json:
        tell_json(result.to_dict())
        return
    print_table(result.header, result.cells(), title=title)
    tell(*result.summary().split("\n"))


# What is decided by an option, so that others have nothing to say.
_DECIDED = {
    "masks": ("subsets", "fraction", "leave-out", "seeds", "seed", "workers"),
    "leave-out": ("fraction",),
    "leave-out 1": ("seed",),
    "data": ("examples",),
}


def _refuse_unused(trained: TrainOptions, of: ExamplesOptions, drawn: SubsetOptions) -> None:
    """Refuse options that another one leaves nothing to do.

    Raises:
        BadInput: If there is one.
    """
    given = flags_given(trained, of, drawn)
    decides = {
        "masks": trained.masks is not None,
        "leave-out": drawn.leave_out is not None,
        "leave-out 1": drawn.leave_out == 1,
        "data": of.data is not None,
    }
    for what, names in _DECIDED.items():
        idle = [name for name in names if decides[what] and f"--{name}" in given]
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

"""What `whence select` was given: where values come from, groups, how a choice is proved; options that go together."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from whence.commands.early import check_number
from whence.commands.task_options import Reading, TaskOptions
from whence.commands.work_options import BatchOptions, DeviceOptions, InBatches, OnDevice, flags_given, refuse_given
from whence.errors import BadInput
from whence.settings import By, Runtime, SelectConfig, exact_settings, final_settings, takes_option

__all__ = ["GroupOptions", "ProofOptions", "ValueOptions", "check_amounts", "check_options", "records_of"]


# Values that are of a validation set.
_ON_VALIDATION = ("influence", "knn-shapley")


@dataclass(frozen=True, kw_only=True)
class ValueOptions:
    """Where values come from.

    Args:
        table: Values from a table of `whence score` or `whence attribute` instead of from --model.
        model: As in build; for values, losses and lengths.
        reading: The options of the task. Parts of a text cannot be chosen apart, so long texts are not split.
        validation: Examples that the model should get right, in any form that `whence build` takes as data.
        method: An exact method of `whence methods`, for both kinds of influence; ekfac if left out.
        seed: Of random choices.
        machine: Where the model runs.
        batches: For both kinds of influence, how much of the data goes through the model at a time.
    """

    table: Path | None = None
    model: str | None = None
    reading: Reading = TaskOptions()
    validation: str | None = None
    method: str | None = None
    seed: int = 0
    machine: OnDevice = DeviceOptions()
    batches: InBatches = BatchOptions()

    def task(self) -> Any:
        """The task of the model; None without one."""
        return None if self.model is None else self.reading.load(self.model, self.machine.placement)[0]

    def dataset(self, task: Any, records: Sequence[Any]) -> Any:
        """The examples, in their order; without a model only their ids.

        Args:
            task: The task; None without a model.
            records: Training data.
        """
        from whence.data import Dataset, Example

        if task is not None:
            return task.prepare(records)
        return Dataset([Example(_id(number, record), {}) for number, record in enumerate(records)])

    def ranked_by(self, by: By | None) -> By:
        """What examples are ranked by: what the values of the table are, if there is one.

        Args:
            by: As it was given; None if it was left out.

        Raises:
            BadInput: If the table has other values.
        """
        if self.table is None:
            return by or "influence"
        from whence.evaluate import load_table
        from whence.select.selection import criterion_of

        table = load_table(self.table)
        has = criterion_of(table, None)
        if by not in (None, has):
            raise BadInput(
                found=f"--by {by} for the table of {len(table.query_ids):,} x {len(table.train_ids):,} values in {self.table}, "
                f"which are {table.values}",
                needed=f"a table to rank by {by}, or --by {has}",
                do=f"leave --by out, or pass --model in place of --table for --by {by}",
            )
        return has

    def values(self, task: Any, train: Any, by: Any) -> Any:
        """What each example is worth, as a table.

        Args:
            task: The task; None without a model.
            train: The examples.
            by: What to rank by.
        """
        from whence.evaluate import load_table
        from whence.load import load_records
        from whence.select import value_table

        if self.table is not None:
            return _for_data(load_table(self.table), train.ids, self.table)
        validation = None if self.validation is None else load_records(self.validation)
        method: Any = self.method or "ekfac"
        batches = {"runtime": Runtime(**asdict(self.batches))} if by.endswith("influence") else {}
        if by.endswith("influence") and takes_option(method, "seed"):
            method = exact_settings(method, {"seed": self.seed})
        return value_table(task, train, by, validation=validation, method=method, seed=self.seed, **batches)


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """What examples have in common.

    Args:
        balance: Give every class ("class"), source ("source") or value of another field of the records a quota of its own.
        duplicates: Of examples whose gradients have at least this cosine keep only the best; needs --store.
        store: A store of method aligned of the same data.
    """

    balance: str | None = None
    duplicates: float | None = None
    store: Path | None = None

    def facts(self, task: Any, records: Sequence[Any], train: Any) -> dict[str, Any]:
        """Groups, lengths and near-duplicates of the examples, as `whence.select.select` takes them.

        Args:
            task: The task; None without a model, and then without lengths; so are examples without tokens.
            records: Training data.
            train: The same prepared.
        """
        from whence.select import near_duplicates

        alike = None if self.store is None or self.duplicates is None else near_duplicates(self.store, cosine=self.duplicates)
        return {
            "groups": None if self.balance is None else _groups(records, train, self.balance),
            "tokens": _lengths(task, train),
            "duplicates": alike,
        }


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """How a choice is proved.

    Args:
        prove: file.py:function, called with a boolean tensor (True for what to train on) and a seed, that trains and returns the loss of each
            test query.
        command: A command instead, as in bank.
        against: Also train on what these would select; random data of the same make always is.
        seeds: Training runs per selection.
        workers: Training runs at a time.
    """

    prove: str | None = None
    command: str | None = None
    against: tuple[Literal["self-influence", "loss"], ...] = ()
    seeds: int = 5
    workers: int = 1

    @property
    def is_asked(self) -> bool:
        """Whether anything is trained."""
        return self.prove is not None or self.command is not None

    def run(self, chosen: Any, rivals: dict[str, Any], output: Path, *, first_seed: int) -> Any:
        """Train on the choice and its rivals.

        Args:
            chosen: The selection.
            rivals: Other selections by name.
            output: Folder for the finished runs and proof.json.
            first_seed: Of the training runs.
        """
        from whence.data import digest_of
        from whence.evaluate import CommandTrain, FileTrain, Retraining, as_reported
        from whence.functions import absolute, sources_of
        from whence.select import prove
        from whence.store import write_json

        train = CommandTrain(self.command) if self.command is not None else FileTrain(absolute(str(self.prove)))
        words = [Path(word) for word in shlex.split(self.command or "") if Path(word).is_file()]
        files = sources_of(str(self.prove)) if self.command is None else words
        ids = [decision.id for decision in chosen.decisions]
        contents = (file.read_bytes().hex() for file in files)
        retraining = Retraining(
            seeds=range(first_seed, first_seed + self.seeds), folder=output / "runs", workers=self.workers,
            fingerprint=digest_of(self.command or str(self.prove), *ids, *contents).hex(),
        )  # fmt: skip
        proof = prove(chosen, train, as_reported, retraining, rivals=rivals)
        write_json(output / "proof.json", proof.to_dict())
        return proof


def check_options(config: SelectConfig, valued: ValueOptions, grouped: GroupOptions, proof: ProofOptions) -> None:
    """Refuse options that would be ignored, before anything is loaded.

    Args:
        config: Which examples are kept.
        valued: Where values come from.
        grouped: Groups and near-duplicates.
        proof: How the choice is proved.

    Raises:
        BadInput: If there are some.
    """
    by, has_table, has_model, long = (
        config.by or "influence",
        valued.table is not None,
        valued.model is not None,
        valued.reading.long,
    )
    validates, has_method = valued.validation is not None, valued.method is not None
    validate, score = "add --validation FILE", "add --model MODEL or --table FOLDER"
    wrong = (
        ("--table and --validation", has_table and validates, "leave one out: a table has its values"),
        ("--table and --method", has_table and has_method, "leave one out: a table has its values"),
        (f"--table for --by {by}", has_table and by == "random", "leave --table out, and pass --by random"),
        (f"neither --table nor --model for --by {by}", by != "random" and not has_table and not has_model, score),
        (f"no --validation for --by {by}", by in _ON_VALIDATION and not has_table and not validates, validate),
        (f"--validation for --by {by}", by not in _ON_VALIDATION and validates, "leave --validation out"),
        (f"--method for --by {by}", not by.endswith("influence") and has_method, "leave --method out"),
        ("--long split", long == "split", "pass --long truncate: parts of a text cannot be chosen apart"),
        ("--quota without --balance", config.quota != "proportional" and grouped.balance is None, "add --balance source"),
        ("--per-token without --model", config.per_token and not has_model, "add --model, which says how long examples are"),
        ("--duplicates without --store", grouped.duplicates is not None and grouped.store is None, "add --store FOLDER"),
        ("--store without --duplicates", grouped.store is not None and grouped.duplicates is None, "add --duplicates 0.9"),
        ("--prove and --command", proof.prove is not None and proof.command is not None, "leave one out"),
        ("--against without --model", bool(proof.against) and not has_model, "add --model, or leave --against out"),
        (f"--against {by} for --by {by}", by in proof.against, "compare with another, or leave --against out"),
        ("--reweight with --prove", config.reweight and proof.is_asked, "leave one out: runs take what is kept, not weights"),
        (
            "--prove for --by random",
            by == "random" and proof.is_asked,
            "leave --prove out: random data is what others are held against",
        ),
    )
    if not proof.is_asked:
        refuse_given(
            proof, where="without --prove", needed="options that go together", do="add --prove FILE:FUNCTION, or leave it out"
        )
    for combination, is_wrong, do in wrong:
        if is_wrong:
            raise BadInput(found=combination, needed="options that go together", do=do)
    if valued.method is not None:
        final_settings(exact_settings(valued.method, {}))
    check_number("--seed", valued.seed, least=0)
    check_number("--duplicates", grouped.duplicates, least=0, most=1)
    for name in ("seeds", "workers"):
        if getattr(proof, name) < 1:
            raise BadInput(found=f"--{name} {getattr(proof, name)}", needed="1 or more", do="leave it out for the default")
    if not by.endswith("influence"):
        refuse_given(valued.batches, where=f"for --by {by}", needed="influence of either kind, which takes batches")
    if not has_model:
        for flag in flags_given(replace(valued.reading, split="train"), valued.machine, valued.batches):
            raise BadInput(
                found=f"{flag} without --model", needed="options that go together", do=f"add --model, or leave {flag} out"
            )


def check_amounts(config: SelectConfig, count: int) -> None:
    """Refuse more examples than there are, before a model is loaded.

    Args:
        config: Which examples are kept.
        count: Of the training data.

    Raises:
        BadInput: If that many are to be kept, or all are to be dropped.
    """
    from whence.select.budget import Budget

    for flag, amount, most in (("--keep", config.keep, count), ("--drop", config.drop, count - 1)):
        budget = None if amount is None else Budget.read(amount)
        if budget is not None and budget.unit == "examples" and budget.amount > most:
            raise BadInput(
                found=f"{flag} {budget.amount:,.0f} of {count:,} training examples",
                needed=f"1 to {most:,} of them",
                do="correct it, or give a share such as 50%",
            )


def _for_data(table: Any, ids: Sequence[str], folder: Path) -> Any:
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
    number_of = {name: number for number, name in enumerate(table.train_ids)}
    return replace(table, scores=table.scores[:, [number_of[name] for name in ids]], train_ids=tuple(ids))


def _groups(records: Sequence[Any], train: Any, balance: str) -> list[str]:
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


def _lengths(task: Any, train: Any) -> list[int] | None:
    """Tokens of every example; None where nothing has tokens, such as rows of a table."""
    if task is None:
        return None
    lengths = [example.length for example in train.examples]
    return lengths if getattr(task, "tokenizer", None) is not None or any(length != 1 for length in lengths) else None


def records_of(records: Sequence[Any], train: Any) -> list[Any] | None:
    """The record of every example, in their order; None where an example is not one record.

    Args:
        records: Training data.
        train: The same prepared; records that cannot be used may be missing.
    """
    if len(records) == len(train):
        return list(records)
    by_id = {_id(number, record): record for number, record in enumerate(records)}
    return [by_id[name] for name in train.ids] if by_id.keys() >= set(train.ids) else None


def _id(number: int, record: Any) -> str:
    return str(record["id"]) if isinstance(record, dict) and "id" in record else str(number)

"""The battery: tests of score tables that need no bank, of tables that are there and of tables that are made for it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.early import check_number
from whence.commands.scorers import scorer_of_method
from whence.commands.work_options import Work, WorkOptions, refuse_given
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["BatteryOptions", "run_battery"]

# Beside every method: what knows nothing of the question, or nothing of gradients.
_CONTROLS = ("random", "loss", "similarity", "bm25")
_MARKS = ("subclass", "shortcut", "foreign")


@dataclass(frozen=True, kw_only=True)
class MadeOptions:
    """Tables that the battery makes itself, with random weights and planted data.

    Args:
        model: With --battery and no tables: make them with this model. Its weights are also shuffled, and scored again.
        fit: Instead of --model: file.py:function, called with records and a seed; trains from scratch and returns the task. Planted data
            needs it.
        method: Methods of `whence methods` to make tables with; grad-dot-exact and ekfac if left out. Controls are always made: random
            scores, the loss, similarity of representations, and shared words (BM25) for texts.
        trigger: With --fit: file.py:function that puts a trigger into a record. Half of the examples of --planted-label get it.
        foreign: With --fit: records of another domain, of which three in four are mixed into the data under --planted-label.
        planted_label: The class that what is planted stands for.
        share: Of that class's examples, how many get the trigger.
        stages: Shuffle the weights in so many steps, the layers nearest to the output first.
        reformat: Also score the queries in another format: upper, json or marks for texts, or file.py:function from a record to a record.
        seed: Of the shuffles, of what is planted, and what --fit is called with.
    """

    model: str | None = None
    fit: str | None = None
    method: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    trigger: str | None = None
    foreign: str | None = None
    planted_label: str | None = None
    share: float = 0.5
    stages: int = 1
    reformat: str | None = None
    seed: int = 0

    def check(self, work: WorkOptions, flags: tuple[str, ...]) -> None:
        """Refuse what does not go together.

        Args:
            work: How the model is read.
            flags: Fields that mark examples already.

        Raises:
            BadInput: If something does not.
        """
        check_number("--stages", self.stages)
        if self.share <= 0:
            raise BadInput(found=f"--share {self.share:g}", needed="above 0, and 1 at most", do="pass .5 for half of the class")
        check_number("--share", self.share, least=0, most=1)
        if self.model is not None and self.fit is not None:
            raise BadInput(found="--model with --fit", needed="one of them: --fit makes the model", do="leave one out")
        if self.model is None and self.fit is None:
            raise BadInput(
                found="--battery without a table",
                needed="tables, or a model that they are made with",
                do="name the folders of tables, or add --model or --fit",
            )
        planted = {"--trigger": self.trigger, "--foreign": self.foreign}
        given = [flag for flag, value in planted.items() if value is not None]
        if given and self.fit is None:
            raise BadInput(
                found=f"{given[0]} without --fit",
                needed="a function that trains on the data with what is planted",
                do="such as: --fit train.py:fit",
            )
        if bool(given) != (self.planted_label is not None):
            raise BadInput(
                found=f"{given[0]} without --planted-label" if given else "--planted-label without --trigger or --foreign",
                needed="both: what is planted, and the class that it stands for",
                do="add the other",
            )
        for flag, mark in (("--trigger", "shortcut"), ("--foreign", "foreign")):
            if flag in given and mark in flags:
                raise BadInput(
                    found=f"--flag {mark} with {flag}",
                    needed="another name: what is planted is marked so",
                    do="rename the field",
                )
        if self.fit is not None:
            refuse_given(
                work.reading, work.machine, where="with --fit", needed="these set in the function, which makes the task"
            )


@dataclass(frozen=True, kw_only=True)
class BatteryOptions:
    """Tests that need no bank.

    Args:
        battery: Hold tables against what their records say instead of against a bank: all names are tables then. Class and subclass detection
            (fields label and subclass), flags, overlap of the strongest, and a model with random weights. Without tables they are made, with
            --model or --fit.
        data: With --battery: the training data that the tables were made from, or are to be made from.
        queries: With --battery: the queries.
        flag: With --battery: a field that marks examples with a shortcut, or of foreign data. May be repeated.
        randomised: With --battery and tables: the table of the same method for the model with random weights.
        k: With --battery: strongest proponents that are compared.
        making: Tables that the battery makes itself.
        work: With --model: how it is read and where it runs.
    """

    battery: Annotated[bool, Parameter(negative="")] = False
    data: str | None = None
    queries: str | None = None
    flag: tuple[str, ...] = ()
    randomised: Path | None = None
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10
    making: Annotated[MadeOptions, Parameter(name="*")] = MadeOptions()
    work: Work = WorkOptions()


def run_battery(tables: tuple[Path, ...], options: BatteryOptions, *, output: Path | None, as_json: bool) -> None:
    """Hold tables against what their records say, and print it.

    Args:
        tables: Folders of tables; none if they are to be made.
        options: What is tested.
        output: Also write everything as JSON into this file.
        as_json: Print JSON.

    Raises:
        BadInput: If options do not go together, or records are missing.
    """
    if options.data is None or options.queries is None:
        raise BadInput(
            found="--battery without --data and --queries", needed="the records that the tables are of", do="pass both files"
        )
    check_number("--k", options.k)
    if tables:
        refuse_given(options.making, options.work, where="with tables", needed="tables, or what to make them with")
        results, notes = _of_tables(tables, options), []
    else:
        options.making.check(options.work, options.flag)
        if options.randomised is not None:
            raise BadInput(
                found="--randomised without a table", needed="nothing: the weights are shuffled here", do="leave it out"
            )
        tables_made = _MadeTables(options)
        results, notes = tables_made.results(), tables_made.notes
    content: dict[str, Any] = {
        name: {test: value.to_dict() for test, value in values.items()} for name, values in results.items()
    }
    content |= {"notes": notes} if notes else {}
    _show(results, content, notes, is_made=not tables, output=output, as_json=as_json)


def _of_tables(tables: tuple[Path, ...], options: BatteryOptions) -> dict[str, dict[str, Any]]:
    from whence.evaluate import battery, load_table
    from whence.load import load_records

    train, queries = list(load_records(str(options.data))), list(load_records(str(options.queries)))
    randomised = None if options.randomised is None else load_table(options.randomised)
    return {
        str(folder): battery(load_table(folder), train, queries, flags=options.flag, randomised=randomised, k=options.k)
        for folder in tables
    }


class _MadeTables:
    """Tables of all methods for a model, and what the battery says of them.

    Args:
        options: As they were given.
    """

    def __init__(self, options: BatteryOptions):
        from whence.functions import function_at
        from whence.load import load_records

        self.options, settings = options, options.making
        self.train, self.queries = list(load_records(str(options.data))), list(load_records(str(options.queries)))
        for file, records in ((options.data, self.train), (options.queries, self.queries)):
            if not records:
                raise BadInput(found=f"no records in {file}", needed="one or more", do="check the file")
        self.fit = None if settings.fit is None else function_at(settings.fit)
        self.trigger = None if settings.trigger is None else function_at(settings.trigger)
        self.foreign = None if settings.foreign is None else list(load_records(settings.foreign))
        self.notes: list[str] = []
        has_texts = bool(self.train) and isinstance(self.train[0], Mapping) and "text" in self.train[0]
        names = (*(settings.method or ("grad-dot-exact", "ekfac")), *_CONTROLS[: 4 if has_texts else 3])
        self.other = self._in_other_format()
        self.scored = {name: scorer_of_method(name, options.work.runtime()) for name in names}

    def _in_other_format(self) -> list[Any] | None:
        """The queries in another format, under the same ids; None if that is not asked."""
        from whence.evaluate import reformatted
        from whence.functions import function_at, is_function

        how = self.options.making.reformat
        if how is None:
            return None
        return reformatted(self.queries, function_at(how) if is_function(how) else how)

    def results(self) -> dict[str, dict[str, Any]]:
        """By method and test, the mean over queries with its interval."""
        from whence.evaluate import agreement, battery, randomisation
        from whence.progress import say

        options, settings = self.options, self.options.making
        planted = self._planted()  # before anything long, for what cannot be planted
        task = options.work.load(str(settings.model)) if self.fit is None else self._trained(self.train)
        train, queries = self._prepared(task, self.train), self._prepared(task, self.queries)
        other = None if self.other is None else self._prepared(task, self.other)
        results: dict[str, dict[str, Any]] = {}
        for name, score in self.scored.items():
            say(f"{name}: scores, and those with shuffled weights")
            of_task = partial(score, train=train, queries=queries)
            table = of_task(task)
            tests = dict(battery(table, self.train, self.queries, flags=options.flag, k=options.k))
            if other is not None:
                alike = agreement(table, score(task, train=train, queries=other), k=options.k)
                tests |= {"other format": alike.spearman, f"same top {options.k}, other format": alike.top}
            for stage in randomisation(task, of_task, table=table, stages=settings.stages, k=options.k, seed=settings.seed):
                which = "" if settings.stages == 1 else f", {len(stage.layers)} of {stage.num_layers} layers"
                tests[f"randomised{which}"] = stage.agreement.spearman
                tests[f"same top {options.k}{which}"] = stage.agreement.top
            results[name] = tests
        for data in planted:
            self._find(data, results)
        chance = min(options.k, len(train)) / len(train)
        low = f"overlap, randomised and same top {options.k}, of which {chance:.2g} is chance"
        self.notes.insert(0, f"good: high for class, subclass, shortcut, foreign and another format; low for {low}")
        return results

    def _trained(self, records: Sequence[Any]) -> Any:
        from whence.tasks import AbstractTask

        assert self.fit is not None
        task = self.fit([_without(record, (*_MARKS, *self.options.flag)) for record in records], self.options.making.seed)
        if not isinstance(task, AbstractTask):
            raise BadInput(
                found=f"{self.options.making.fit}, which returned {type(task).__name__}",
                needed="a task, with the model that it trained",
                do="return whence.Classification(model), say",
            )
        return task

    def _prepared(self, task: Any, records: Sequence[Any]) -> Any:
        data = task.prepare([_without(record, (*_MARKS, *self.options.flag)) for record in records])
        if len(data) != len(records):
            raise BadInput(
                found=f"{len(records):,} records that become {len(data):,} examples",
                needed="one example for each, which its fields can be held against",
                do="use --long truncate, and leave bad records out of the file",
            )
        return data

    def _planted(self) -> list[Any]:
        from whence.evaluate import mixed_in, with_shortcut

        settings = self.options.making
        if settings.planted_label is None:
            return []
        # Of JSON, where labels may be numbers, a command line has only the words.
        labels = {
            str(record["label"]): record["label"] for record in self.train if isinstance(record, Mapping) and "label" in record
        }
        if settings.planted_label not in labels:
            raise BadInput(
                found=f"--planted-label {settings.planted_label}",
                needed=f"a label of the data: {', '.join(sorted(labels)[:10]) or 'it has none'}",
                do="pick one",
            )
        label = labels[settings.planted_label]
        planted = []
        if self.trigger is not None:
            planted.append(
                with_shortcut(self.train, self.queries, self.trigger, label=label, share=settings.share, seed=settings.seed)
            )
        if self.foreign is not None:
            planted.append(mixed_in(self.train, self.foreign, label=label))
        return planted

    def _find(self, planted: Any, results: dict[str, dict[str, Any]]) -> None:
        """Train on what was planted, and see which method names it."""
        from whence.data import Dataset
        from whence.evaluate.battery import flagged_precision
        from whence.progress import say

        say(f"{planted.flag}: training")
        task = self._trained(planted.train)
        train, queries = self._prepared(task, planted.train), self._prepared(task, planted.queries)
        rows = self._taught(task, queries, planted)
        queries_taught = [planted.queries[row] for row in rows]
        for name, score in self.scored.items():
            say(f"{planted.flag}: {name}")
            table = score(task, train=train, queries=Dataset([queries.examples[row] for row in rows]))
            results[name][planted.flag] = flagged_precision(table.scores, planted.train, queries_taught, planted.flag)

    def _taught(self, task: Any, queries: Any, planted: Any) -> list[int]:
        """Queries that the model gives the planted label with more than even odds: what is to be explained.

        Raises:
            BadInput: If there are none.
        """
        from whence.score import loss_scores

        flagged = sum(bool(record.get(planted.flag)) for record in planted.train)
        chance = f"{planted.flag}: {flagged:,} of {len(planted.train):,} training examples, {flagged / len(planted.train):.3g} is chance"
        if task.kind != "classification":
            self.notes.append(f"{chance}; whether the model learnt it is not known for a {task.kind} task")
            return list(range(len(queries)))
        losses_Q = loss_scores(task, queries, queries, quiet=True).scores[0]
        rows = [row for row, loss in enumerate(losses_Q.tolist()) if loss < math.log(2)]
        self.notes.append(
            f"{chance}; the model gives {len(rows):,} of {len(queries):,} queries the label {self.options.making.planted_label} for it "
            "with a probability above one half, and these are asked about"
        )
        if not rows:
            raise BadInput(
                found=f"a model that gives none of {len(queries):,} queries the planted label with a probability above one half",
                needed="one that learnt what was planted",
                do="plant more of it (--share), make it plainer, or train for longer",
            )
        return rows


def _without(record: Any, marks: Sequence[str]) -> Any:
    """A record without what only the battery may know."""
    return {name: value for name, value in record.items() if name not in marks} if isinstance(record, Mapping) else record


def _show(
    results: Mapping[str, Mapping[str, Any]],
    content: dict[str, Any],
    notes: list[str],
    *,
    is_made: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from whence.report import print_table
    from whence.store import write_bytes

    if output is not None:
        write_bytes(output, [json.dumps(content, indent=1).encode() + b"\n"])
    if as_json:
        tell_json(content)
        return
    tests = list(dict.fromkeys(test for values in results.values() for test in values))
    if is_made:
        rows = [(name, *(_brief(values[test]) for test in tests)) for name, values in results.items()]
        print_table(("method", *tests), rows)
    else:
        # A test a row: what is left of a long path beside five columns could not be read.
        names = {name: Path(name).name for name in results}
        names = names if len(set(names.values())) == len(names) else {name: name for name in names}
        rows = [(test, *(str(values[test]) for values in results.values())) for test in tests]
        print_table(("test", *names.values()), rows)
    tell(*notes)


def _brief(interval: Any) -> str:
    """A mean and half its interval, for a table of many columns."""
    half = "" if math.isnan(interval.high) else f" ±{interval.high - interval.mean:.2f}"
    return f"{interval.mean:.2f}{half}"

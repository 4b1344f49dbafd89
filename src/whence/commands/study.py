"""The verb about many queries at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.early import check_count, check_number, check_question
from whence.commands.exact_options import Final, FinalOptions
from whence.commands.recorded import task_of_store
from whence.commands.shared import Json
from whence.commands.work_options import DeviceOptions, Recorded, RecordedOptions, Work, WorkOptions, flags_given, refuse_given
from whence.errors import BadInput
from whence.settings import Damping, DampingRule, Runtime, StudyConfig, exact_settings, final_settings
from whence.terminal import tell

__all__ = ["study"]


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is compared, and how.

    Args:
        sets: A set of queries as name=file, once per set: the file as build takes data, samples of lm-evaluation-harness (--log_samples) or a
            log of Inspect.
        k: Documents of a tail on each side; 50, or a tenth of a small corpus, if left out.
        kinds: File with id and kind of every document; the source is its kind if left out.
        verbatim: Also say what of the queries is copied from the corpus word for word, and which documents are related by words (BM25).
        side_by_side: Folder of a study of the same queries and documents with another model, to be compared with.
        damping_rule: For a store, a published rule instead of a number, as in query.
    """

    sets: Annotated[tuple[str, ...], Parameter(name="--set", negative="")]
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = None
    kinds: str | None = None
    side_by_side: Path | None = None
    verbatim: Annotated[bool, Parameter(negative="")] = False
    damping_rule: DampingRule | None = None

    def named(self) -> dict[str, Any]:
        """The queries of each set.

        Raises:
            BadInput: If a set has no name, or another one's.
        """
        from whence.load import harness_records, load_records

        parts = [text.partition("=") for text in self.sets]
        wrong = [text for text, (name, _, file) in zip(self.sets, parts, strict=True) if not name or not file]
        if wrong or len({name for name, _, _ in parts}) != len(parts):
            raise BadInput(
                found=f"--set {wrong[0] if wrong else ' '.join(self.sets)}",
                needed="name=file, every name once",
                do="such as: --set facts=facts.jsonl --set code=code.jsonl",
            )
        return {name: harness_records(file) or load_records(file) for name, _, file in parts}

    def config(self, seed: int | None) -> StudyConfig:
        """What is read off the scores."""
        from whence.load import load_records

        kinds = None if self.kinds is None else _kinds(self.kinds, load_records(self.kinds))
        return StudyConfig(k=self.k, kinds=kinds, seed=seed or 0, verbatim=self.verbatim, side_by_side=self.side_by_side)


def study(
    store: str,
    data: str | None = None,
    /,
    *,
    compared: Annotated[StudyOptions, Parameter(name="*")],
    output: Annotated[Path, Parameter(alias="-o")],
    recorded: Recorded = RecordedOptions(),
    exact: Final = FinalOptions(),
    work: Work = WorkOptions(),
    as_json: Json = False,
) -> None:
    """Compare named sets of queries by where in a corpus they come from: tails, histograms, rank correlations, kinds of document.

    Writes study.json and a page, study.html. Running it again goes on where it stopped. Options of the method, of how data is read and of
    memory are for training data; a store has its method inside and takes a damping.

    Args:
        store: Folder made by `whence build`; or, with training data after it, a model as build takes it.
        data: Training data as build takes it, to go through it with whole gradients instead of a store.
        compared: What is compared.
        output: Folder of the study; all scores are kept there, 4 bytes for each query and document.
        recorded: For a store, what is loaded of what it records.
        exact: For training data, the method and its settings; a store takes its damping.
        work: For training data, how it is read, and what memory may be taken.
        as_json: Print JSON instead of a table.

    Raises:
        BadInput: If a set is not named, or an option is given that has no use here.
    """
    from whence.load import load_records
    from whence.report import print_table
    from whence.store import open_store
    from whence.study import study as run
    from whence.study.copied import COPIED_HEADER
    from whence.study.recall import RECALL_HEADER
    from whence.study.side_by_side import SIDE_HEADER

    sets, config = compared.named(), compared.config(exact.factored.seed)
    method, damping, runtime = None, Damping(), Runtime()
    if data is None:
        refuse_given(replace(work, machine=DeviceOptions()), where="for a store", needed="what the other kind of corpus takes")
        corpus: Any = open_store(store)
        check_number("-k", compared.k, most=max(1, len(corpus) // 2), of="documents of a tail")
        damping = _store_damping(exact, compared.damping_rule)
        check_question(corpus, damping)
        task = task_of_store(corpus, Path(store), recorded.model, work.machine.placement, trust=recorded.trust)
    else:
        refuse_given(recorded, where="for training data", needed="what the other kind of corpus takes")
        method = final_settings(exact_settings(exact.method, exact.given() | {"damping_rule": compared.damping_rule}))
        corpus = load_records(data, split=work.reading.split)
        check_count("--fit-on", exact.factored.fit_on, corpus, work.reading)
        check_count("-k", compared.k, corpus, work.reading, share=2, of="documents of a tail")
        task = work.load(store)
        corpus = task.prepare(corpus)
        runtime = work.runtime()
    result = run(task, corpus, sets, output, config=config, method=method, damping=damping, runtime=runtime)
    if as_json:
        tell(*(output / "study.json").read_text("utf-8").rstrip("\n").split("\n"))
        return
    print_table(result.header, result.cells(), keys=2)
    if result.recall:
        print_table(RECALL_HEADER, [recall.cells() for recall in result.recall], keys=3)
    if result.sides:
        print_table(SIDE_HEADER, [side.cells() for side in result.sides], keys=2)
    if result.beside:
        print_table(COPIED_HEADER, result.copied())
    for caution in result.cautions():
        tell(f"note: {caution}")
    tell(f"{output / 'study.html'} shows the rest, {output / 'study.json'} has every number")


def _store_damping(exact: FinalOptions, rule: Any) -> Damping:
    """The damping of a store's curvature.

    Raises:
        BadInput: If something is given that is for training data.
    """
    given = {"method": exact.method if "--method" in flags_given(exact) else None, **exact.given()}
    relative, absolute = given.pop("relative_damping", None), given.pop("absolute_damping", None)
    given.pop("seed", None)  # nothing is fitted
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        raise BadInput(
            found=f"{', '.join(unused)} for a store",
            needed="training data for it: a store has its method and curvature inside",
            do=f"leave {unused[0]} out, or study the data itself",
        )
    return Damping(relative=relative, absolute=absolute, rule=rule)


def _kinds(file: str, records: Iterable[Any]) -> Mapping[str, str]:
    """Kind by id.

    Raises:
        BadInput: If a record does not have both.
    """
    kinds = {}
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not {"id", "kind"} <= record.keys():
            raise BadInput(found=f"record {number} of {file}", needed="mappings with 'id' and 'kind'", do="add the fields")
        kinds[str(record["id"])] = str(record["kind"])
    return kinds

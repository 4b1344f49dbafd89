"""The verb that asks a store."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.diffusion_options import Measuring, MeasuringOptions, given_of
from whence.commands.early import SINGLE, check_checkpoint, check_number, check_question, check_run, is_along_folder
from whence.commands.receipts import SealOptions
from whence.commands.recorded import task_of_store, train_records
from whence.commands.shared import Placed, read_token, shown_stages, workers_of
from whence.commands.work_options import (
    Damped,
    DampingOptions,
    Recorded,
    RecordedOptions,
    Scanned,
    ScanOptions,
    Shown,
    ShownOptions,
    refuse_given,
)
from whence.errors import BadInput, is_question
from whence.plans import query_stages
from whence.settings import Damping, Indexed, Placement, Rerank, Runtime
from whence.terminal import tell_json

__all__ = ["query"]


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """What a store is asked.

    Args:
        text: A text whose log-probability is asked about; may be repeated.
        prompt: Together with --completion: only the completion is asked about.
        completion: See --prompt.
        file: Queries from a file, in any form that `whence build` takes as data.
        k: Examples on each side.
        tokens: Score the tokens of each hit and highlight the strongest passage.
        index: Look for hits in what `whence export` wrote of this store for FAISS or Lance, in place of a scan.
        run: Of stores along a recorded run (`whence build --run`): where the run is now, if not where it was at the build.
        measuring: Of a diffusion model, what is asked about otherwise than at the build.
        verbatim: Also say what is copied from the corpus word for word and what is alike by words (BM25): the folder in which an index of its
            words is kept; it is made where it is not there.
    """

    text: tuple[str, ...] = ()
    prompt: str | None = None
    completion: str | None = None
    file: str | None = None
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10
    tokens: bool = False
    index: Path | None = None
    run: Path | None = None
    measuring: Measuring = MeasuringOptions()
    verbatim: Path | None = None

    def check(self, store: Path) -> None:
        """Refuse what is no question, before anything is loaded.

        Args:
            store: Who is asked.

        Raises:
            BadInput: If there is none, half of one, or one in the store's place.
        """
        if (self.prompt is None) != (self.completion is None):
            raise BadInput(found="only one of --prompt and --completion", needed="both", do="add the other, or use --text")
        if not self.text and self.prompt is None and self.file is None:
            if is_question(str(store)) and not store.exists():
                raise BadInput(
                    found=f"the question {str(store)!r} where a store's folder is read",
                    needed="a folder made by `whence build`, and the question after it",
                    do="name the store first, and pass the question as --text: whence query STORE --text '...'",
                )
            raise BadInput(found="no query", needed="--text, --prompt with --completion, or --file", do="add one")

    def queries(self) -> list[Any]:
        """All of them.

        Raises:
            BadInput: If a file has none.
        """
        from whence.load import load_records

        queries: list[Any] = [*self.text]
        if self.prompt is not None:
            queries.append({"prompt": self.prompt, "completion": self.completion})
        if self.file is not None:
            queries.extend(load_records(self.file))
        if not queries:
            raise BadInput(found=f"no query in {self.file}", needed="one or more", do="check the file")
        return queries


@dataclass(frozen=True, kw_only=True)
class RerankOptions:
    """A second stage.

    Args:
        rerank: Ask in two stages: the store leaves a shortlist, and this scores it. "exact" runs the model again on the examples of the
            shortlist (for stores of method aligned); the folder of another store of the same data takes their rows there.
        train: For --rerank exact, where the training data is now, if not where it was at the build; repeated for data that was appended.
        shortlist: Training examples kept on each side of every query; if left out 10 k, 400 at least, and as many as are
            expected to hold 95 % of the best 100, up to a tenth of all.
    """

    rerank: str | None = None
    train: tuple[str, ...] = ()
    shortlist: int | None = None

    def check(self) -> None:
        """Refuse what is said of a stage that is not asked for."""
        if self.rerank is None:
            refuse_given(
                self, where="without --rerank", needed="a second stage for it", do="add --rerank exact, or leave it out"
            )

    def stage(self, opened: Any, store: Path, *, trust: bool) -> Rerank | None:
        """The second stage, None if there is none."""
        if self.rerank is None:
            return None
        records = train_records(opened, store, self.train, trust=trust) if self.train or self.rerank == "exact" else None
        return Rerank(by=self.rerank, train=records, shortlist=self.shortlist)


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """A service that answers instead of this process.

    Args:
        url: Ask a service that `whence serve` started, such as http://127.0.0.1:8420, instead of loading model and store.
        token_file: For --url, file with the token of that service.
    """

    url: str | None = None
    token_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Who answers, and with what receipt.

    Args:
        service: A service.
        scanned: Who scans the store here.
        sealing: Receipts of the answer.
    """

    service: Annotated[ServiceOptions, Parameter(name="*")] = ServiceOptions()
    scanned: Scanned = ScanOptions()
    sealing: Annotated[SealOptions, Parameter(name="*")] = SealOptions()


def query(
    store: Path,
    *,
    options: Annotated[QueryOptions, Parameter(name="*")] = QueryOptions(),
    recorded: Recorded = RecordedOptions(),
    damped: Damped = DampingOptions(),
    second: Annotated[RerankOptions, Parameter(name="*")] = RerankOptions(),
    answered: Annotated[AnswerOptions, Parameter(name="*")] = AnswerOptions(),
    placement: Placed = Placement(),
    shown: Shown = ShownOptions(),
) -> None:
    """Rank the training examples behind a behaviour. Started by torchrun, the processes share the scan.

    Args:
        store: Folder or URL made by `whence build`; with --url the name of a store there.
        options: What is asked.
        recorded: What is loaded of what the store records.
        damped: Damping of the store's curvature.
        second: A second stage.
        answered: Who answers, and with what receipt.
        placement: How a model is loaded that is larger than a device.
        shown: How the answer is shown.

    Raises:
        BadInput: If there is no query, or half a query, or an option that the service has no use for.
    """
    service, sealing = answered.service, answered.sealing
    options.check(store)
    sealing.check()
    if service.url is not None:
        refuse_given(
            sealing, recorded, damped, second, answered.scanned, placement,
            where="with --url", needed="options that a service takes", do="leave it out, or ask the store itself",
        )  # fmt: skip
        refuse_given(options.measuring, where="with --url", needed="a store here", do="leave it out")
        for flag in ("index", "verbatim", "run"):
            if getattr(options, flag) is not None:
                raise BadInput(found=f"--{flag} with --url", needed="a store here, that it is of", do="leave one of them out")
        from whence.serve import Client

        token = None if service.token_file is None else read_token(service.token_file)
        hits = Client(service.url, token=token).query(options.queries(), store=str(store), k=options.k, tokens=options.tokens)
    else:
        refuse_given(service, where="without --url", needed="a service to show it to", do="add --url, or leave it out")
        second.check()
        damping = damped.damping()
        check_number("-k", options.k)
        with shown_stages(query_stages(is_reranked=second.rerank is not None, tokens=options.tokens), recorded.model):
            _check_stores(store, options, second, sealing)
            hits = _answer(store, options, recorded, damping, second, answered.scanned, placement)
    if hits is not None:
        if sealing.receipts is not None:
            sealing.add(_sealed(hits, store, options))
        _show(hits, store, shown)


def _check_stores(store: Path, options: QueryOptions, second: RerankOptions, sealing: SealOptions) -> None:
    """Refuse what stores along a run have no use for, and the place of a run for a single store."""
    check_run(store, options.run)
    if is_along_folder(store):
        rest = replace(options, text=(), prompt=None, completion=None, file=None, k=QueryOptions.k, run=None)
        rest = replace(rest, measuring=MeasuringOptions())
        refuse_given(second, sealing, rest, where=f"for {store}", needed=SINGLE)


def _sealed(hits: Any, store: Path, options: QueryOptions) -> list[Any]:
    """A receipt's content for each query, in the words of a service's answers."""
    from whence._version import __version__
    from whence.ledger import sealed_now
    from whence.store import open_store

    opened, shown = open_store(store, check=False), hits.to_dict()
    facts = {name: value for name, value in shown.items() if name != "queries"}
    facts |= {"digest": opened.digest, "weights": opened.blueprint.model, "version": __version__, "k": options.k}
    facts |= {} if options.index is None else {"stage": "index"}
    contents = []
    for query in shown["queries"]:
        record = query.get("question", {})
        question = {
            "prompt": record.get("prompt", ""),
            "completion": record.get("completion", record.get("text", query["query"])),
        }
        sides = {
            side: [{name: hit[name] for name in ("id", "row", "score")} for hit in query[side]]  # and no training text
            for side in ("proponents", "opponents")
        }
        contents.append(facts | question | sides | {"measurement": query["measurement"]})
    return [sealed_now("query", content, store=opened.digest) for content in contents]


def _answer(
    store: Path,
    options: QueryOptions,
    recorded: RecordedOptions,
    damping: Damping,
    second: RerankOptions,
    scanned: ScanOptions,
    placement: Placement,
) -> Any:
    """What the store answers; None on all processes but the first."""
    from whence.distributed import Ranks
    from whence.load.placement import connected_for
    from whence.pipeline import query as run
    from whence.pipeline import with_words
    from whence.store import open_store

    ranks, queries = Ranks.launched(), options.queries()
    if is_along_folder(store):
        return _answer_along(store, options, recorded, damping, scanned, placement, ranks)
    opened = open_store(store, ranks=ranks)
    if second.rerank is not None:
        check_question(opened, damping, Rerank(by=second.rerank, shortlist=second.shortlist), options.k)
    else:
        check_question(opened, damping)
    stage = second.stage(opened, store, trust=recorded.trust)
    # Workers start while the model is loaded.
    with workers_of(scanned.workers, scanned.ray) as pool, connected_for(placement, ranks):
        measuring = given_of(options.measuring)
        task = task_of_store(opened, store, recorded.model, placement, ranks, trust=recorded.trust, measuring=measuring)
        check_checkpoint(opened, task)
        source = opened if options.index is None else Indexed(store=opened, index=options.index)
        hits = run(
            source, task, queries, k=options.k, damping=damping, tokens=options.tokens, rerank=stage,
            runtime=Runtime(ranks=ranks, workers=pool, **asdict(scanned.batches)),
        )  # fmt: skip
    if ranks.rank > 0:
        return None
    return hits if options.verbatim is None else with_words(hits, opened, options.verbatim)


def _answer_along(
    store: Path,
    options: QueryOptions,
    recorded: RecordedOptions,
    damping: Damping,
    scanned: ScanOptions,
    placement: Placement,
    ranks: Any,
) -> Any:
    """What stores along a run answer together; None on all processes but the first."""
    from whence.load.placement import connected_for
    from whence.pipeline import query_along
    from whence.pipeline.through.along_record import open_along

    along = open_along(store, ranks=ranks)
    check_question(along.stores[0], damping)
    with workers_of(scanned.workers, scanned.ray) as pool, connected_for(placement, ranks):
        measuring = given_of(options.measuring)
        task = task_of_store(
            along.stores[0], store, recorded.model, placement, ranks, trust=recorded.trust, measuring=measuring
        )  # fmt: skip
        hits = query_along(
            along, task, options.queries(), k=options.k, run=options.run, damping=damping,
            runtime=Runtime(ranks=ranks, workers=pool, **asdict(scanned.batches)),
        )  # fmt: skip
    return hits if ranks.rank == 0 else None


def _show(hits: Any, store: Path, shown: ShownOptions) -> None:
    from whence.report import hits_fragment, question_title, write_page

    if shown.html is not None:
        intro = f"{hits.num_examples:,} training examples in {store}"
        sections = [("Answers", hits_fragment(hits))]
        write_page(shown.html, "Where does this come from?", sections, intro=intro, tab=question_title(hits.queries))
    if shown.as_json:
        tell_json(hits.to_dict())
    else:
        hits.show()

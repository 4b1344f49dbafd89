"""Why did it say this?"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.early import check_count, check_number
from whence.commands.exact_options import Factored, FactoredOptions
from whence.commands.recorded import task_of_store, train_records
from whence.commands.work_options import (
    DeviceOptions,
    Recorded,
    RecordedOptions,
    Shown,
    ShownOptions,
    Work,
    WorkOptions,
    flags_given,
    refuse_given,
)
from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.settings import Contrast, Runtime, Shortlist, Writing
from whence.terminal import tell_json

__all__ = ["why"]


@dataclass(frozen=True, kw_only=True)
class WhyOptions:
    """What is to be explained.

    Args:
        prompt: What the model was given.
        completion: What it said. Left out, the model writes it: the most likely token each time, or sampled with --temperature.
        foil: What it might have said instead: why the completion and not this?
        chat: The prompt is a user's message: put it into the model's chat template.
        token: Explain only this token of the completion, by its number in the answer, counted from 1.
        k: Documents on each side.
        max_new_tokens: Tokens to write at most.
        temperature: Sample the completion at this temperature; 0 takes the most likely token each time.
        layers: Print through which layers, modules and attention heads each score comes, too; pages and JSON have them in any case.
        verbatim: Also say what is copied from the corpus word for word and what is alike by words (BM25): the folder in which an index of its
            words is kept; it is made where it is not there.
    """

    prompt: str
    completion: str | None = None
    foil: str | None = None
    chat: Annotated[bool, Parameter(negative="")] = False
    token: int | None = None
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 5
    max_new_tokens: int = Writing.max_new_tokens
    temperature: float = Writing.temperature
    layers: Annotated[bool, Parameter(negative="")] = False
    verbatim: Path | None = None

    def text(self, seed: int | None) -> str | Writing | Contrast:
        """The completion, what it is held against, or how the model writes it.

        Raises:
            BadInput: If both are said, or a foil without a completion.
        """
        if self.foil is not None and self.completion is None:
            raise BadInput(
                found="--foil without --completion", needed="what it is held against", do="pass --completion with what was said"
            )
        if self.completion is None:
            return Writing(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed or 0)
        for flag in flags_given(self).keys() & {"--max-new-tokens", "--temperature"}:
            raise BadInput(
                found=f"{flag} for a completion that is given",
                needed="a setting of what the model has to write",
                do=f"leave {flag} out",
            )
        return self.completion if self.foil is None else Contrast(completion=self.completion, foil=self.foil)


@dataclass(frozen=True, kw_only=True)
class WhereOptions:
    """Where documents are looked for.

    Args:
        recorded: The model; with a store only if it moved since the build.
        train: Training data, in any form that `whence build` takes; with a store only if it moved. May be repeated.
        shortlist: With a store: training examples kept on each side; 10 k if left out, and 400 at least.
    """

    recorded: Recorded = RecordedOptions()
    train: tuple[str, ...] = ()
    shortlist: int | None = None


def why(
    store: Path | None = None,
    *,
    request: Annotated[WhyOptions, Parameter(name="*")],
    where: Annotated[WhereOptions, Parameter(name="*")] = WhereOptions(),
    factored: Factored = FactoredOptions(),
    work: Work = WorkOptions(),
    shown: Shown = ShownOptions(),
) -> None:
    """Why did it say this? The training documents, and tokens in them, behind a completion or one token of it.

    Asks a store of the method aligned (a shortlist, then exact scores of it), or with --model and --train all of the training data. Options
    of the method, of how data is read and of memory are for the latter: a store knows its own.

    Args:
        store: Folder made by `whence build`; leave it out to go through the training data itself.
        request: What is to be explained.
        where: Where documents are looked for.
        factored: Without a store: the method, one of ekfac, kfac and grad-dot-exact, and its settings.
        work: Without a store: how model and data are read, and what memory may be taken.
        shown: How the answer is shown.

    Raises:
        BadInput: If it is not said where to look, or said twice.
    """
    check_number("-k", request.k)
    check_number("--token", request.token)
    check_number("--shortlist", where.shortlist, least=request.k)
    request.text(factored.seed)
    answer = _of_data(request, where, factored, work) if store is None else _of_store(store, request, where, factored, work)
    if shown.html is not None:
        where_text = ", ".join(where.train) if store is None else str(store)
        answer.page(shown.html, intro=f"{answer.hits.num_examples:,} training examples in {where_text}")
    if shown.as_json:
        tell_json(answer.to_dict())
    else:
        answer.show(layers=request.layers)


def _of_store(store: Path, request: WhyOptions, where: WhereOptions, factored: FactoredOptions, work: WorkOptions) -> Any:
    from whence.store import open_store
    from whence.why.candidates import check_store

    refuse_given(
        replace(factored, seed=None),
        replace(work, machine=DeviceOptions()),
        where="with a store",
        needed="what the store was built with, which it knows",
    )
    opened = open_store(store)
    check_store(opened)
    task = task_of_store(opened, store, where.recorded.model, work.machine.placement, trust=where.recorded.trust)
    train = train_records(opened, store, where.train, trust=where.recorded.trust)
    answer = _explained(task, request, train, factored.seed, Shortlist(store=opened, rows=where.shortlist), Runtime())
    return _beside(answer, opened, request)


def _of_data(request: WhyOptions, where: WhereOptions, factored: FactoredOptions, work: WorkOptions) -> Any:
    from whence.load import load_records

    if where.recorded.trust:
        raise BadInput(found="--trust without a store", needed="a store that records something", do="leave it out")
    if where.shortlist is not None:
        raise BadInput(
            found="--shortlist without a store, which has a shortlist",
            needed="a store of method aligned",
            do="name the folder of a store, or leave it out",
        )
    model = where.recorded.model
    if model is None or not where.train:
        raise BadInput(
            found="no store" + ("" if model is None else " and no --train"),
            needed="where to look",
            do="name the folder of a store, or pass --model and --train",
        )
    settings = factored.settings()
    if exact_method_named(factored.method).solver is not None:
        raise BadInput(
            found=f"--method {factored.method} to explain a completion token by token",
            needed="a method whose inverse is a formula, so that the parts of a score add up to it",
            do="pass --method ekfac, kfac or grad-dot-exact",
        )
    records = [record for data in where.train for record in load_records(data, split=work.reading.split)]
    check_count("--fit-on", factored.fit_on, records, work.reading)
    task = work.load(model)
    train = task.prepare(records)
    return _beside(_explained(task, request, train, factored.seed, settings, work.runtime()), train, request)


def _beside(answer: Any, corpus: Any, request: WhyOptions) -> Any:
    """The answer with its second column, if that was asked for."""
    from whence.pipeline import with_words

    if request.verbatim is None:
        return answer
    pairs = [(answer.prompt, "".join(answer.completion))]
    return replace(answer, hits=with_words(answer.hits, corpus, request.verbatim, completions=pairs))


def _explained(task: Any, request: WhyOptions, train: Any, seed: int | None, method: Any, runtime: Any) -> Any:
    from whence.why import why as explain

    prompt = [{"role": "user", "content": request.prompt}] if request.chat else request.prompt
    return explain(
        task, prompt, request.text(seed), train=train, method=method, token=request.token, k=request.k, runtime=runtime
    )

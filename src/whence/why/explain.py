"""Why did it say this? Documents, and tokens in them, behind a completion, or behind one token of it.

Axes: A asked tokens of the completion, T tokens of a document, U units, K documents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.report import Hit, Hits
from whence.score import believable_unit
from whence.settings import Contrast, ExactSettings, Runtime, Shortlist, Writing, final_settings, records_only, shown
from whence.store import Store, open_store
from whence.tasks import AbstractTask, CausalLM
from whence.why.answer import DocumentParts, Foil, Why
from whence.why.candidates import FromData, FromStore, Source, split_up
from whence.why.heads import head_scores, heads_of
from whence.why.question import Question, question, texts_of

__all__ = ["why"]


@records_only(method=ExactSettings | Shortlist, runtime=Runtime)
def why(
    task: AbstractTask,
    prompt: str | Sequence[Mapping[str, Any]],
    completion: str | Writing | Contrast = Writing(),
    *,
    train: Dataset | Iterable[Any],
    method: str | ExactSettings | Shortlist = "ekfac",
    token: int | None = None,
    k: int = 5,
    runtime: Runtime = Runtime(),
) -> Why:
    """The training documents behind a completion, token by token.

    The measurement is the log-probability of the completion after the prompt, a sum over its tokens; a document's gradient is a sum over
    its positions. A score is bilinear in the two, so it splits into a part for each pair of a completion token and a document token, and into
    one for each layer (Grosse et al. 2023, section 3.3), which add up to it.

    A document token's part is that of the position where the model had to predict it. It holds all of the document's loss that flows through
    that position: of this token and, through attention, of later ones.

    Args:
        task: A causal language model.
        prompt: A text, or the messages of a conversation that the assistant is to go on with.
        completion: What the model said, or how it is to write that; or a `whence.settings.Contrast`, why this and not that: the measurement
            is then the log-probability of the completion less that of its foil, whose tokens have parts, too.
        train: The training data; with a store at least what it was built from.
        method: To score all of `train`, one of "ekfac", "kfac" and "grad-dot-exact", or its settings. A `whence.settings.Shortlist` of a
            store of aligned scores only what that leaves, with the curvature and damping inside the store.
        token: Number of the one token of the completion to explain, counted from 1, those of a foil after them; None explains the whole.
        k: Documents on each side at most.
        runtime: How the job runs.

    Returns:
        The answer.

    Raises:
        BadInput: If a setting has no use, or the completion has no such token.
        Unsupported: If the task is no language model, or has no tokenizer.

    >>> why(task, "The capital of France is", " Paris", train=train).show()  # doctest: +SKIP
    """
    if not isinstance(task, CausalLM) or task.tokenizer is None:
        raise Unsupported(
            found=f"a {type(task).__name__} task{' without a tokenizer' if isinstance(task, CausalLM) else ''}",
            needed="a causal language model with its tokenizer",
            do="use whence.query or whence.attribute",
        )
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one document")
    if isinstance(method, Shortlist) and runtime.chosen:
        raise BadInput(
            found=f"{runtime.chosen[0]} with a shortlist of a store, whose curvature is inside it",
            needed="settings of the road that is taken",
            do=f"leave {runtime.chosen[0]} out, or pass the name of a method",
        )
    if isinstance(method, Store | Path) or method is Shortlist:
        raise BadInput(
            found=f"method={shown(method)}",
            needed="a method, or the shortlist of a store",
            do="write method=whence.settings.Shortlist(store=...)",
        )
    settings = method if isinstance(method, Shortlist) else final_settings(method)
    query = question(task, prompt, completion)
    numbers = _numbers(query, token)
    if isinstance(settings, Shortlist):
        opened = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        source: Source = FromStore.prepare(task, opened, train, query, shortlist=settings.rows, quiet=runtime.quiet)
    else:
        source = FromData.prepare(task, train, query, settings, runtime)
    hits = source.hits(query.whole if token is None else query.one_token(token - 1), k)
    return _answer(task, query, numbers, source, hits, quiet=runtime.quiet)


def _numbers(query: Question, token: int | None) -> tuple[int, ...]:
    count = len(query.all_tokens)
    if token is None:
        return tuple(range(1, count + 1))
    if not 1 <= token <= count:
        listed = ", ".join(f"{number} {text!r}" for number, text in list(enumerate(query.all_tokens, start=1))[:20])
        raise BadInput(
            found=f"token {token} of a completion of {count}",
            needed=f"1 to {count}: {listed}{', ...' if count > 20 else ''}",
            do="pick one of these",
        )
    return (token,)


def _answer(task: CausalLM, query: Question, numbers: tuple[int, ...], source: Source, hits: Hits, *, quiet: bool) -> Why:
    sides = (hits.proponents[0], hits.opponents[0])
    rows = [hit.row for side in sides for hit in side]
    queries = [query.one_token(number - 1) for number in numbers]
    maps, units_UAK = split_up(task, source, queries, rows, quiet=quiet) if rows else ([], None)
    heads = heads_of(task.model, source.plan)
    is_whole = len(numbers) == len(query.all_tokens)
    blocks = source.blocks([query.whole if is_whole else queries[0]]) if heads and rows else ()
    parts, readings = {}, {}
    for index, row in enumerate(rows):
        example, scores_AT = source.examples[row], maps[index]
        text, spans = _read(task, example)
        assert units_UAK is not None
        layers = dict(zip((unit.name for unit in source.plan.units), units_UAK[:, :, index].sum(1).tolist(), strict=True))
        by_head = head_scores(task, source.plan, example, blocks, heads) if heads else {}
        parts[example.id] = DocumentParts(scores_AT, texts_of(text, spans), layers, by_head)
        readings[row] = (text, spans, scores_AT)
    values = [query.values[number - 1] for number in numbers]
    scores = [hit.score for side in sides for hit in side]
    unit, sizes = believable_unit(hits.unit, task, torch.tensor([sum(values)]), [scores], queries)
    hits = replace(
        hits,
        queries=(query.whole.text + ("" if query.foil is None else f"\n(and not: {''.join(query.foil.tokens)})"),),
        measurements=(sum(values),),
        unit=unit,
        notes=(*hits.notes, *sizes),
        proponents=(tuple(_with_tokens(hit, *readings[hit.row]) for hit in sides[0]),),
        opponents=(tuple(_with_tokens(hit, *readings[hit.row]) for hit in sides[1]),),
    )
    foil = None if query.foil is None else Foil(query.foil.tokens, query.foil.log_probabilities)
    return Why(query.prompt, query.tokens, query.log_probabilities, numbers, hits, parts, foil)


def _with_tokens(hit: Hit, text: str, spans: Sequence[tuple[int, int]], scores_AT: Tensor) -> Hit:
    return replace(hit, text=text, token_spans=tuple(spans), token_scores=tuple(scores_AT.sum(0).tolist()))


def _read(task: CausalLM, example: Example) -> tuple[str, list[tuple[int, int]]]:
    """The document's text and the characters of its tokens; from the tokens themselves where nothing else is known."""
    if example.token_spans is not None:
        return example.text, [(int(a), int(b)) for a, b in example.token_spans]
    ids = example.fields["input_ids"].tolist()
    texts = [task.tokenizer.decode([token]) for token in ids]
    ends = [sum(map(len, texts[:count])) for count in range(len(texts) + 1)]
    return "".join(texts), list(zip(ends, ends[1:], strict=False))

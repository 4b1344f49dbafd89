"""Answers as they go out: with the training texts of their hits, which no log keeps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from whence.pipeline.stored.prepared import hit_of
from whence.report import Hit, beside_of
from whence.report.passages import peak_of, pieces, strongest
from whence.serve.hosted_store import HostedStore
from whence.serve.question import SIDES
from whence.serve.redaction import Redaction

__all__ = ["is_closed", "shown"]

# Characters of an example that are shown first.
_PASSAGE = 260


def shown(hosted: HostedStore, answers: Sequence[Mapping[str, Any]], *, redacted: Redaction | None) -> list[dict[str, Any]]:
    """Answers with the training texts of their hits, or, redacted, without anything made from them.

    Hits of all answers are read together: questions that share a scan mostly share shards too.

    Args:
        hosted: Whose hits they are.
        answers: What `answered` gave, or the log.
        redacted: What is told instead of training text, which stays here; None to show it.

    Returns:
        The answers.
    """
    examples = hosted.prepared.store.examples_of(hit["row"] for answer in answers for side in SIDES for hit in answer[side])
    scored = [{side: [_hit(hosted, hit, examples[hit["row"]]) for hit in answer[side]] for side in SIDES} for answer in answers]
    is_redacted = redacted is not None
    whole = [
        {
            **{name: value for name, value in answer.items() if name != "client" and (name != "digest" or not is_redacted)},
            **_shown_item(hosted, answer, redacted=is_redacted),
            **_shown_sides(hosted, hits, redacted=is_redacted),
            **({} if is_redacted else _beside(hosted, answer, hits)),
            "redacted": is_redacted,
        }
        for answer, hits in zip(answers, scored, strict=True)
    ]
    return (
        whole
        if redacted is None
        else [
            redacted.shown(answer, hosted.catalog.source_sizes, client=logged.get("client", ""))
            for answer, logged in zip(whole, answers, strict=True)
        ]
    )


def _beside(hosted: HostedStore, answer: Mapping[str, Any], sides: Mapping[str, Sequence[Hit]]) -> dict[str, Any]:
    """What of the completion is copied from the store's texts, and what is alike by words; nothing without an index of these."""
    if hosted.words is None or "item" in answer:
        return {}
    hits = [hit for side in sides.values() for hit in side]
    column = beside_of(
        hosted.words, answer["prompt"], answer["completion"], hits, lambda row: hit_of(hosted.prepared.store, row, 0.0)
    )
    return {"beside": column.to_dict()}


def is_closed(answer: Mapping[str, Any]) -> bool:
    """Whether an answer tells what a redacted service keeps: which of its examples have some text, or some time."""
    chosen = answer["filter"]
    return bool(chosen["text"]) or chosen["since"] is not None or chosen["until"] is not None


def _shown_item(hosted: HostedStore, answer: Mapping[str, Any], *, redacted: bool) -> dict[str, Any]:
    """What was asked about, its image as a path instead of its bytes."""
    if "item" not in answer:
        return {}
    item = {name: value for name, value in answer["item"].items() if name != "thumbnail"}
    if answer["item"]["thumbnail"]:
        item["image"] = f"v1/answers/{answer['id']}/image"
    elif item["example"] and redacted:
        # Its label may be that of the training example.
        return {"item": {**item, "label": "", "is_predicted": False, "predicted": ""}, "completion": ""}
    elif item["example"]:
        item["image"] = _image(hosted, item["example"])
    return {"item": item}


def _image(hosted: HostedStore, name: str) -> str:
    return f"v1/stores/{quote(hosted.name, safe='')}/images/{quote(name)}"


def _hit(hosted: HostedStore, logged: Mapping[str, Any], example: Mapping[str, Any]) -> Hit:
    """A hit as the log keeps it, with its example."""
    hit = hit_of(hosted.prepared.store, logged["row"], logged["score"], example)
    spans, scores = zip(*logged["tokens"], strict=True) if logged["tokens"] else ((), ())
    parts = tuple(logged.get("query_scores", ()))
    return dataclasses.replace(hit, token_spans=tuple(map(tuple, spans)), token_scores=tuple(scores), query_scores=parts)


def _shown_sides(hosted: HostedStore, sides: Mapping[str, Sequence[Hit]], *, redacted: bool) -> dict[str, Any]:
    peak = peak_of(hit for hits in sides.values() for hit in hits)
    return {side: [_shown_hit(hosted, hit, peak, redacted=redacted) for hit in hits] for side, hits in sides.items()}


def _shown_hit(hosted: HostedStore, hit: Hit, peak: float, *, redacted: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": hit.id, "row": hit.row, "score": hit.score, "source": hit.source}
    if redacted:
        return shown
    shown |= hosted.catalog.time_of(hit.row)
    if hit.label is not None:
        shown |= {"label": hit.label.label, "predicted": hit.label.predicted, "is_disputed": hit.label.is_disputed}
    if hosted.kind == "image":
        shown["image"] = _image(hosted, hit.id)
    parts = pieces(hit, peak)
    shown |= {"text": hit.text, "passage": list(strongest(hit, parts, _PASSAGE))}
    shown |= {"span": list(hit.span)} if hit.span is not None else {}
    tokens = [{"span": [part.start, part.stop], "score": part.score, "strength": part.strength} for part in parts]
    shown |= {"query_scores": list(hit.query_scores)} if hit.query_scores else {}
    return shown | ({"tokens": tokens} if hit.token_scores else {})

"""Answers as they go out: with the training texts of their hits, which no log keeps."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from whence.pipeline.stored.prepared import hit_of
from whence.report import Hit
from whence.report.passages import pieces, strongest
from whence.serve.hosted_store import Desk

__all__ = ["is_closed", "shown"]

_SIDES = ("proponents", "opponents")
# Characters of an example that are shown first.
_PASSAGE = 260


def shown(desk: Desk, answers: Sequence[Mapping[str, Any]], *, redacted: bool) -> list[dict[str, Any]]:
    """Answers with the training texts of their hits, or, redacted, without anything made from them.

    Hits of all answers are read together: questions that share a scan mostly share shards too.

    Args:
        desk: Whose hits they are.
        answers: What `answered` gave, or the log.
        redacted: Whether training text stays here.

    Returns:
        The answers.
    """
    examples = desk.warm.store.examples_of(hit["row"] for kept in answers for side in _SIDES for hit in kept[side])
    return [
        {
            **{name: value for name, value in kept.items() if name != "digest" or not redacted},
            **_shown_item(desk, kept, redacted=redacted),
            **{side: [_shown_hit(desk, hit, examples[hit["row"]], redacted=redacted) for hit in kept[side]] for side in _SIDES},
            "redacted": redacted,
        }
        for kept in answers
    ]


def is_closed(kept: Mapping[str, Any]) -> bool:
    """Whether an answer tells what a redacted service keeps: which of its examples have some text, or some time."""
    chosen = kept["filter"]
    return bool(chosen["text"]) or chosen["since"] is not None or chosen["until"] is not None


def _shown_item(desk: Desk, kept: Mapping[str, Any], *, redacted: bool) -> dict[str, Any]:
    """What was asked about, its image as a path instead of its bytes."""
    if "item" not in kept:
        return {}
    item = {name: value for name, value in kept["item"].items() if name != "thumbnail"}
    if kept["item"]["thumbnail"]:
        item["image"] = f"v1/answers/{kept['id']}/image"
    elif item["example"] and redacted:
        # Its label may be that of the training example.
        return {"item": {**item, "label": "", "is_predicted": False}, "completion": ""}
    elif item["example"]:
        item["image"] = _image(desk, item["example"])
    return {"item": item}


def _image(desk: Desk, name: str) -> str:
    return f"v1/stores/{quote(desk.name, safe='')}/images/{quote(name)}"


def _shown_hit(desk: Desk, kept: Mapping[str, Any], known: Mapping[str, Any], *, redacted: bool) -> dict[str, Any]:
    row = kept["row"]
    hit = hit_of(desk.warm.store, row, kept["score"], known)
    found: dict[str, Any] = {"id": hit.id, "row": row, "score": hit.score, "source": hit.source}
    if redacted:
        return found
    found |= desk.catalog.time_of(row)
    if desk.kind == "image":
        found["image"] = _image(desk, hit.id)
    spans, scores = zip(*kept["tokens"], strict=True) if kept["tokens"] else ((), ())
    scored = Hit(hit.id, row, hit.score, hit.source, hit.text, hit.span, tuple(map(tuple, spans)), tuple(scores))
    parts = pieces(scored)
    found |= {"text": hit.text, "passage": list(strongest(scored, parts, _PASSAGE))}
    found |= {"span": list(hit.span)} if hit.span is not None else {}
    tokens = [{"span": [part.start, part.stop], "score": part.score, "strength": part.strength} for part in parts]
    return found | ({"tokens": tokens} if scored.token_scores else {})

"""Whether receipts say what the store and the model say: the questions are asked again, and every figure is held against the sealed one.

Axes: N rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence.errors import WhenceError
from whence.ledger import ChainCheck
from whence.serve.answer import Masks, answered
from whence.serve.catalog import Filter
from whence.serve.hosted_store import HostedStore
from whence.serve.question import Question

__all__ = ["recomputed"]

# Batches are padded, other processors round otherwise, and types are narrow: of the largest score of the answer, or of a sum of sizes.
_ROUNDING = 1e-3
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class _Again:
    """A sealed question, asked again.

    Args:
        number: Of the receipt.
        question: What was asked.
        content: What was sealed.
    """

    number: int
    question: Question
    content: Mapping[str, Any]
    is_wanted: bool = True

    def report(self, phase: str, done: int, total: int) -> None:
        """Nobody listens."""


def recomputed(hosted: HostedStore, check: ChainCheck) -> tuple[list[str], list[str]]:
    """Ask again what a chain's receipts of this store were asked, and compare.

    Args:
        hosted: The store and its model.
        check: The receipts that hold, from `whence.ledger.verify_chain`.

    Returns:
        A line for each receipt of which a figure does not come out again, and notes on what was not asked again.
    """
    askers, faults, others = [], [], 0
    for head in check.heads:
        content = check.contents.get(head.number)
        if head.kind not in ("answer", "query") or head.store != hosted.digest or content is None or not _is_plain(content):
            others += 1
            continue
        try:
            askers.append(_Again(head.number, _question(content), content))
        except (KeyError, TypeError) as error:
            faults.append(f"receipt {head.number}: its content is no answer of this version ({error})")
    for first in range(0, len(askers), min(_AT_ONCE, hosted.at_once)):
        faults += _asked_again(hosted, askers[first : first + min(_AT_ONCE, hosted.at_once)])
    notes = [f"{len(askers):,} receipts were computed again from {hosted.prepared.store.folder}"]
    if others:
        notes.append(
            f"{others:,} were not: of another store, about an image, of a second stage, or published without their content"
        )
    return faults, notes


def _is_plain(content: Mapping[str, Any]) -> bool:
    """Whether all that was asked is in the content, and one scan answers it."""
    return "item" not in content and isinstance(content.get("completion"), str) and content.get("stage", "scan") == "scan"


def _question(content: Mapping[str, Any]) -> Question:
    chosen = content.get("filter") or {}
    return Question(
        prompt=content.get("prompt") or "",
        completion=content["completion"],
        foil=content.get("foil") or "",
        token=content.get("token"),
        k=content["k"],
        filter=Filter(**{**chosen, "sources": tuple(chosen.get("sources", ()))}),
    )


def _asked_again(hosted: HostedStore, askers: Sequence[_Again]) -> list[str]:
    masks, faults = Masks(hosted), []
    try:
        examples = [hosted.example(asker.question) for asker in askers]
        answers = answered(hosted, askers, examples, masks, True)
        for asker, answer in zip(askers, answers, strict=True):
            assert answer is not None  # it is wanted
            keep = masks.of(asker.question)
            keep_N = np.ones(len(answer["scores"]), bool) if keep is None else keep.numpy()
            why = _difference(hosted, asker.content, answer, keep_N)
            faults += [f"receipt {asker.number}: {why}"] if why else []
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # Whoever signed it may have written anything.
        faults.append(
            f"receipts {askers[0].number} to {askers[-1].number}: a content that is no answer of this version ({error})"
        )
    except WhenceError as error:
        faults.append(f"receipts {askers[0].number} to {askers[-1].number}: they cannot be computed again ({error})")
    return faults


def _difference(hosted: HostedStore, content: Mapping[str, Any], answer: Mapping[str, Any], keep_N: np.ndarray) -> str:
    """The first sealed figure that does not come out again; empty if all do."""
    scores_N: np.ndarray = answer["scores"]
    tolerance = _ROUNDING * float(np.abs(scores_N).max(initial=0.0))
    if content.get("weights") not in (None, hosted.weights):
        return f"weights: {str(content['weights'])[:12]} were sealed, the store is of {hosted.weights[:12]}"
    sealed, value = content["measurement"], answer["measurement"]
    if abs(sealed - value) > _ROUNDING * max(1.0, abs(value)):
        return f"measurement: {sealed:.6g} was sealed, {value:.6g} comes out"
    for side, sign in (("proponents", 1), ("opponents", -1)):
        hits, is_listed_N = content[side], np.zeros(len(scores_N), bool)
        for index, hit in enumerate(hits):
            row, score = hit["row"], hit["score"]
            if not 0 <= row < len(scores_N) or abs(score - scores_N[row]) > tolerance:
                again = f"{scores_N[row]:.6g}" if 0 <= row < len(scores_N) else "no such row"
                return f"{side}[{index}].score: {score:.6g} was sealed for row {row}, {again} comes out"
            if "id" in hit and hosted.prepared.store.example(row)["id"] != hit["id"]:
                return f"{side}[{index}].id: {hit['id'][:80]!r} was sealed, row {row} is another example"
            is_listed_N[row] = True
        rest = float((sign * scores_N[keep_N & ~is_listed_N]).max(initial=0.0))
        least = min((sign * hit["score"] for hit in hits), default=0.0) if len(hits) >= content["k"] else 0.0
        if rest > least + tolerance:
            return f"{side}: an example of score {sign * rest:.6g} is left out"
    return _share_difference(content, answer)


def _share_difference(content: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """The first sum over a source that does not come out again."""
    sums = {share["source"]: share for share in answer["shares"]}
    tolerance = _ROUNDING * float(np.abs(answer["scores"]).sum())
    for index, share in enumerate(content.get("shares", ())):
        other = sums.get(share["source"])
        for name in ("positive", "negative"):
            if other is None or abs(share[name] - other[name]) > tolerance:
                comes = "nothing" if other is None else f"{other[name]:.6g}"
                return f"shares[{index}].{name}: {share[name]:.6g} was sealed for {share['source'][:80]!r}, {comes} comes out"
    return ""

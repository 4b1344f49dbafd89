"""The same queries and documents with two models.

Axes: Q queries, N documents.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whence.errors import BadInput, StoreCorrupt
from whence.evaluate.ranks import spearman
from whence.evaluate.statistics import Interval, mean_interval
from whence.store import damaged, read_json
from whence.store.files import tensor_shapes
from whence.study.kept_scores import StoredScores

if TYPE_CHECKING:
    from whence.study.result import Study

__all__ = ["SIDE_HEADER", "Side", "side_by_side"]

SIDE_HEADER = ("reading", "set", "same query, both models", "shared top k", "alike within: this one", "the other")


@dataclass(frozen=True)
class Side:
    """One set under two models.

    Args:
        reading: Name of the reading.
        set: Name of the set.
        spearman: How alike the two rank all documents for one query, mean over queries with a t-interval.
        top: Share of the top k that both have.
        within: Mean rank correlation of two queries of the set, in this study and in the other.
    """

    reading: str
    set: str
    spearman: Interval
    top: Interval
    within: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "reading": self.reading, "set": self.set, "spearman": self.spearman.to_dict(), "top": self.top.to_dict(),
            "within": [None if value != value else value for value in self.within],
        }  # fmt: skip

    def cells(self) -> tuple[str, ...]:
        """Text, to go under `SIDE_HEADER`."""
        means = (value.brief for value in (self.spearman, self.top))
        return (self.reading, self.set, *means, *("" if value != value else f"{value:.2g}" for value in self.within))


def side_by_side(study: "Study", folder: str | Path) -> tuple[Side, ...]:
    """Hold a study against one of the same queries over the same documents with another model.

    Args:
        study: This one.
        folder: Of the other one.

    Returns:
        For each reading that both have and each set.

    Raises:
        BadInput: If the other one has other queries or other documents.
        StoreCorrupt: If its file is not what was written.
    """
    folder = Path(folder)
    other = read_json(folder / "study.json")
    try:
        sets, number = {name: tuple(ids) for name, ids in other["sets"].items()}, other["num_documents"]
        mine = {name: tuple(study.query_ids[row] for row in rows) for name, rows in study.sets.items()}
        ids = {
            hit["row"]: hit["id"] for reading in other["readings"].values() for tail in reading["tails"] for hit in tail["top"]
        }
        is_same = number == len(study.corpus) and all(study.corpus.document(row, 0.0).id == name for row, name in ids.items())
        if sets != mine or not is_same:
            raise BadInput(
                found=f"a study of other {'queries' if sets != mine else 'documents'} in {folder}",
                needed="the same queries over the same documents, with another model",
                do="run it again with these",
            )
        scores = _scores_of(folder / "scores", other)
        return tuple(
            side for name in study.readings if name in other["readings"] for side in _sides(study, scores, other, name)
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(**damaged(folder / "study.json", f"it has no {error}")) from error


def _sides(study: "Study", scores: StoredScores, other: Mapping[str, Any], name: str) -> list[Side]:
    tails, sides = study.readings[name].tails, []
    content = other["readings"][name]
    blocks = [
        {tuple(block["sets"]): block["mean"]["mean"] for block in blocks}
        for blocks in (study.readings[name].correlation.to_dict()["blocks"], content["correlation"]["blocks"])
    ]
    for label, rows in study.sets.items():
        alike, shared = [], []
        for query in rows:
            values = [each.values(query, by_norm=name.endswith("norm")) for each in (study.scores, scores)]
            alike.append(float(spearman(values[0][None], values[1][None])[0]))
            tops = set(tails.high_QK[query].tolist()), {hit["row"] for hit in content["tails"][query]["top"]}
            shared.append(len(tops[0] & tops[1]) / max(map(len, tops)))
        within = tuple(float("nan") if each.get((label, label)) is None else each[label, label] for each in blocks)
        means = [mean_interval(torch.tensor(values, dtype=torch.float64)) for values in (alike, shared)]
        sides.append(Side(name, label, means[0], means[1], (within[0], within[1])))
    return sides


def _scores_of(folder: Path, other: Mapping[str, Any]) -> StoredScores:
    sums = dict(read_json(folder / "scores.json")["sha256"])
    names = sorted(name for name in sums if re.fullmatch(r"\d{5,}\.safetensors", name))
    shapes = [tensor_shapes(folder / name) for name in names]
    sizes = tuple(int(shape["scores"][0][1]) for shape in shapes)
    nats = torch.tensor([query["nats"] for query in other["queries"]], dtype=torch.float64)
    return StoredScores(folder, sizes, len(nats), nats, all("norms" in shape for shape in shapes), sums)

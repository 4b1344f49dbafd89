"""What a question to a store is asked with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.settings.curvature import Damping
from whence.settings.runtime import Runtime, split_runtime

__all__ = ["QueryConfig", "Rerank", "stored_options"]

# Of each side, per hit that is wanted and at least: docs/results.md has what is then missed.
_SHORTLIST, _SHORTEST = 10, 400
# Of the rows, at most as many as one in so many, unless hits call for more.
_SHARE = 10
_DAMPING = {"relative_damping": "relative", "absolute_damping": "absolute", "damping_rule": "rule"}


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """A second stage: a scan of the store leaves a shortlist per query, and something better scores that.

    Args:
        by: "exact" for whole gradients of the model with the EK-FAC and the damping inside a store of aligned; or another store of the same
            data, or its folder.
        train: For "exact", at least the examples that the store was built from, in any order. The model runs on the shortlist only.
        shortlist: Rows kept of each query on each side; None for 10 for each hit, and 400 at least, and where the store's agreement with
            exact scores is known as many as are expected to hold 95 % of the best 100, up to a tenth of the rows.

    Raises:
        BadInput: If there is training data for a second store.
    """

    by: Any = "exact"
    train: Any = None
    shortlist: int | None = None

    def __post_init__(self):
        if self.by != "exact" and self.train is not None:
            raise BadInput(
                found="train for a second store", needed="nothing but the store", do="leave train out, or pass rerank='exact'"
            )

    def rows_kept(self, k: int, rows: int, wanted: int = 0) -> int:
        """Rows of each side that the scan keeps for k hits.

        Args:
            k: Hits.
            rows: Of the store.
            wanted: As many as its agreement with exact scores calls for.

        Raises:
            BadInput: If the shortlist is shorter than that.
        """
        if self.shortlist is not None and self.shortlist < k:
            raise BadInput(
                found=f"shortlist={self.shortlist} for k={k}", needed="at least k", do="keep more, or ask for fewer hits"
            )
        return self.shortlist or max(_SHORTLIST * k, _SHORTEST, min(wanted, rows // _SHARE))


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """What is asked of a store.

    Args:
        k: Hits on each side at most; proponents have positive scores, opponents negative ones.
        damping: Of the store's curvature; the method's own share of the mean eigenvalue if nothing is said. It is the first stage's; a
            second store takes its method's own.
        tokens: Whether the text hits get a score per token, which runs the model on each hit again. They add up to the hit's score.
            A hit whose gradient, made again, scores less than half or more than twice of what its stored row does gets none, and a note
            says so.
        second: A second stage for the shortlist.
        index: What `whence.pipeline.export` wrote of this store for FAISS or Lance: hits are looked for there in place of a scan. An index
            that is not exact misses some, which a note says; scores are those of the store's rows.

    Raises:
        BadInput: If k is not positive.
    """

    k: int = 10
    damping: Damping = Damping()
    tokens: bool = False
    second: Rerank | None = None
    index: str | Path | None = None

    def __post_init__(self):
        if self.k < 1:
            raise BadInput(found=f"k={self.k}", needed="1 or more", do="ask for at least one hit")


def stored_options(
    damping: Damping, second: Rerank | None, runtime: Runtime, options: Mapping[str, Any]
) -> tuple[Damping, Rerank | None, Runtime]:
    """What a question to a store is asked with, from objects or from options by name.

    Args:
        damping: Of the store's curvature.
        second: The second stage; None without one.
        runtime: How the job runs.
        options: Flat: `relative_damping`, `absolute_damping`, `damping_rule`, `rerank`, `train`, `shortlist`, and the fields of `Runtime`.

    Returns:
        The three, with the options in them.

    Raises:
        BadInput: If an option is unknown, said twice, or has no use.
    """
    runtime, rest = split_runtime(runtime, options)
    dampings = {_DAMPING[name]: rest.pop(name) for name in list(rest) if name in _DAMPING}
    stage = {name: rest.pop(name) for name in list(rest) if name in ("rerank", "train", "shortlist")}
    if rest:
        names = [*_DAMPING, "rerank", "train", "shortlist", *(field.name for field in fields(Runtime))]
        raise BadInput(found=f"an option {next(iter(rest))!r}", needed=f"one of: {', '.join(names)}", do="correct it")
    if (dampings and damping != Damping()) or (stage and second is not None):
        name = next(iter(dampings or stage))
        raise BadInput(found=f"{name} said in two ways", needed="an object or options by name", do=f"leave {name} out")
    if stage and "rerank" not in stage:
        name = next(iter(stage))
        raise BadInput(found=f"{name} without rerank", needed="a second stage for it", do=f"pass rerank, or leave {name} out")
    if stage:
        second = Rerank(by=stage["rerank"], train=stage.get("train"), shortlist=stage.get("shortlist"))
    return (Damping(**dampings) if dampings else damping), second, runtime

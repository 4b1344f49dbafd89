"""IF-Guide from end to end: score every token, choose, write the mask file and a page to look at."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whence.data import Dataset
from whence.guide.choose_tokens import TokenSelection, select_tokens
from whence.guide.marks import Marked, Marks
from whence.guide.page import write_guide_page
from whence.guide.token_scores import TokenScores, contrast_scores
from whence.pipeline.inputs import as_dataset
from whence.settings import ExactSettings, GuideConfig, Runtime, records_only
from whence.tasks import AbstractTask

__all__ = ["guide", "mark_tokens"]


@records_only(config=GuideConfig, method=ExactSettings, runtime=Runtime)
def guide(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    harmful: Dataset | Iterable[Any],
    safe: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    config: GuideConfig = GuideConfig(),
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> Marks:
    """Find the training tokens that a behaviour comes from, for training to suppress (IF-Guide, arXiv 2506.01790).

    Writes `marks.jsonl`, the mask file; `report.html`, the highest documents with their marked tokens; `scores/`, the score of every token;
    and `curvature/`. What is finished is used again: other choices in `config` cost no pass over the data.

    Args:
        task: A causal language model, or a smaller one with the same tokenizer that was trained on the same data. For one with another
            tokenizer see `carry_scores`.
        train: The training data.
        harmful: Queries with the behaviour, best as prompt and completion: only the completion counts.
        safe: Queries with what should come instead.
        folder: Where all of it goes.
        config: Which tokens are marked.
        method: As in `whence.attribute`; none that goes back through a run.
        runtime: How the job runs.

    Returns:
        The marks, for `whence.guide.suppress_marked` and `whence.guide.suppress_in_trainer`.
    """
    folder, train = Path(folder), as_dataset(task, train)
    scores = contrast_scores(task, train, harmful, safe, folder, method=method, runtime=runtime)
    return mark_tokens(scores, task, folder, config=config, writes=runtime.ranks.rank == 0)


@records_only(config=GuideConfig)
def mark_tokens(
    scores: TokenScores, task: AbstractTask, folder: str | Path, *, config: GuideConfig = GuideConfig(), writes: bool = True
) -> Marks:
    """The second half of `guide`: choose tokens by their scores, and write the mask file and the page.

    Args:
        scores: Of all tokens of the model that is to be trained: of `contrast_scores`, or of `carry_scores` where a proxy with another
            tokenizer scored.
        task: That model, with its tokenizer.
        folder: Where marks.jsonl and report.html go.
        config: Which tokens are marked.
        writes: Whether this process writes them.

    Returns:
        The marks.
    """
    folder, selection = Path(folder), select_tokens(scores, config)
    marks = _marks(scores, selection, config, task.preprocessing)
    if writes:
        marks.save(folder / "marks.jsonl")
        write_guide_page(folder / "report.html", scores, selection, marks)
    return marks


def _marks(scores: TokenScores, selection: TokenSelection, config: GuideConfig, tokenizer: str) -> Marks:
    ranking, marks = selection.ranking, {}
    for row, positions in selection.marked.items():
        example = scores.train.examples[row]
        ids = example.fields["input_ids"]
        marks[example.id] = Marked(
            example.id, example.length, tuple(positions), tuple(int(ids[at]) for at in positions),
            float(ranking.ranks_N[row]), int(ranking.counts_N[row]), float(ranking.sums_N[row]),
        )  # fmt: skip
    about = {
        "examples": len(scores.train),
        "scored_tokens": selection.scored,
        "marked_tokens": sum(len(marked.positions) for marked in marks.values()),
        "threshold": selection.threshold,
        "quantile": config.quantile,
        "window": config.window,
        "budget": config.budget,
        "floor": selection.floor,
        "stopped": selection.stopped,
        "method": scores.method,
        "notes": list(scores.notes),
        "train": scores.train.fingerprint,
        "tokenizer": tokenizer,
    }
    return Marks(marks, about)

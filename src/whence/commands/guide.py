"""The verb that finds the tokens behind an unwanted behaviour."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["guide"]


def guide(
    model: str,
    data: str,
    *,
    harmful: str,
    safe: str,
    output: Annotated[Path, Parameter(alias="-o")],
    quantile: float = 0.99,
    window: int = 1,
    budget: float = 0.02,
    method: str = "ekfac",
    relative_damping: float | None = None,
    seed: int = 0,
    fit_on: int | None = None,
    split: str = "train",
    long: Literal["error", "split", "truncate"] = "error",
    max_length: int | None = None,
    track: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    memory_gib: float | None = None,
    as_json: Json = False,
) -> None:
    """Find the training tokens that an unwanted behaviour comes from, for training to suppress (IF-Guide).

    Writes marks.jsonl, for `whence.suppress_marked` in your own loop or `whence.suppress_in_trainer` with Hugging Face; report.html, to
    look at before; and the score of every token, so that another quantile, window or budget takes seconds.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task. A smaller model with the same tokenizer, trained on
            the same data, will do for a large one.
        data: Training data, as in build.
        harmful: Queries with the behaviour, best with prompt and completion, in any form that build takes as data.
        safe: Queries with what should come instead.
        output: Folder for all of it.
        quantile: Only tokens whose score is above this quantile of all of them start a mark.
        window: Tokens before and after each that are marked along with it.
        budget: Share of the tokens that may be marked.
        method: One of the exact methods of `whence methods`, but source.
        relative_damping: Damping as a share of each layer's mean curvature.
        seed: Of the labels that the curvature draws.
        fit_on: Fit the curvature on so many training examples instead of all.
        split: Split of a Hugging Face dataset.
        long: What to do with texts longer than the context.
        max_length: Tokens per example at most.
        track: Patterns of parameter names to attribute; all if left out.
        ignore: Patterns of parameter names to leave out.
        memory_gib: Memory to take besides the model; most of what is free if left out.
        as_json: Print JSON.

    Raises:
        BadInput: If both sets of queries are the same file.
    """
    from whence.apply.guide import guide as find
    from whence.apply.guide.choose_tokens import GuideConfig
    from whence.load import load_records

    if harmful == safe:
        raise BadInput(
            found=f"{harmful} as both --harmful and --safe",
            needed="two sets that differ in the behaviour",
            do="correct one of them",
        )
    config = GuideConfig(quantile=quantile, window=window, budget=budget)
    records, unwanted, wanted = load_records(data, split=split), load_records(harmful), load_records(safe)
    task, _ = TaskOptions(long=long, max_length=max_length, track=track, ignore=ignore).load(model)
    marks = find(
        task, records, unwanted, wanted, output, config=config, method=method, relative_damping=relative_damping, seed=seed, fit_on=fit_on,
        memory_gib=memory_gib,
    )  # fmt: skip
    files = {"marks": str(output / "marks.jsonl"), "report": str(output / "report.html")}
    if as_json:
        about = {name: marks.about[name] for name in ("examples", "scored_tokens", "marked_tokens", "threshold", "method")}
        tell_json(files | about | {"marked_examples": len(marks.examples)})
        return
    tell(
        f"{len(marks):,} of {marks.about['scored_tokens']:,} tokens marked, in {len(marks.examples):,} of "
        f"{marks.about['examples']:,} examples",
        f"mask file: {files['marks']}",
        f"report:    {files['report']}",
    )

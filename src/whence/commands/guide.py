"""The verb that finds the tokens behind an unwanted behaviour."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.commands.early import check_count
from whence.commands.exact_options import Final, FinalOptions
from whence.commands.shared import Json
from whence.commands.work_options import Work, WorkOptions
from whence.errors import BadInput
from whence.settings import GuideConfig
from whence.terminal import tell, tell_json

__all__ = ["guide"]


@dataclass(frozen=True, kw_only=True)
class BehaviourOptions:
    """The behaviour.

    Args:
        harmful: Queries with the behaviour, best with prompt and completion, in any form that build takes as data.
        safe: Queries with what should come instead.
        tokenizer: The model that is to be trained, where it has another tokenizer than the one that scores: marks are for its tokens.
    """

    harmful: str
    safe: str
    tokenizer: str | None = None


def guide(
    model: str,
    data: str,
    *,
    behaviour: Annotated[BehaviourOptions, Parameter(name="*")],
    output: Annotated[Path, Parameter(alias="-o")],
    config: Annotated[GuideConfig, Parameter(name="*")] = GuideConfig(),
    exact: Final = FinalOptions(),
    work: Work = WorkOptions(),
    as_json: Json = False,
) -> None:
    """Find the training tokens that an unwanted behaviour comes from, for training to suppress (IF-Guide).

    Writes marks.jsonl, for `whence.guide.suppress_marked` in your own loop or `whence.guide.suppress_in_trainer` with Hugging Face;
    report.html, to look at before; and the score of every token, so that another quantile, window or budget takes seconds. Processes that
    torchrun starts share the work.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task. A smaller model with the same tokenizer, trained on
            the same data, will do for a large one.
        data: Training data, as in build.
        behaviour: The behaviour.
        output: Folder for all of it.
        config: Which tokens are marked.
        exact: The method and its settings.
        work: How model and data are read, and what memory may be taken.
        as_json: Print JSON.

    Raises:
        BadInput: If both sets of queries are the same file.
    """
    from whence.distributed import Ranks
    from whence.guide import carry_scores, contrast_scores, mark_tokens
    from whence.guide import guide as find
    from whence.load import load_records

    if behaviour.harmful == behaviour.safe:
        raise BadInput(
            found=f"{behaviour.harmful} as both --harmful and --safe",
            needed="two sets that differ in the behaviour",
            do="correct one of them",
        )
    method = exact.settings()
    records, unwanted = load_records(data, split=work.reading.split), load_records(behaviour.harmful)
    wanted = load_records(behaviour.safe)
    check_count("--fit-on", exact.factored.fit_on, records, work.reading)
    ranks = Ranks.launched()
    task, runtime = work.load(model), replace(work.runtime(), ranks=ranks)
    if behaviour.tokenizer is None:
        marks = find(task, records, unwanted, wanted, output, config=config, method=method, runtime=runtime)
    else:
        reader, records = work.load(behaviour.tokenizer), list(records)
        scores = contrast_scores(task, records, unwanted, wanted, output, method=method, runtime=runtime)
        carried = carry_scores(scores, reader.prepare(records), output / f"carried-{ranks.rank}")
        marks = mark_tokens(carried, reader, output, config=config, writes=ranks.rank == 0)
    if ranks.rank > 0:
        return
    files = {"marks": str(output / "marks.jsonl"), "report": str(output / "report.html")}
    if as_json:
        about = {
            name: marks.about[name]
            for name in ("examples", "scored_tokens", "marked_tokens", "threshold", "floor", "stopped", "method", "notes")
        }
        tell_json(files | about | {"marked_examples": len(marks.examples)})
        return
    tell(
        f"{len(marks):,} of {marks.about['scored_tokens']:,} tokens marked, in {len(marks.examples):,} of "
        f"{marks.about['examples']:,} examples",
        f"why no more: {marks.about['stopped']}",
        *(f"note: {note}" for note in marks.about["notes"]),
        f"mask file: {files['marks']}",
        f"report:    {files['report']}",
    )

"""The verb that measures a behaviour."""

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.commands.work_options import Work, WorkOptions
from whence.errors import BadInput
from whence.settings import SampleConfig
from whence.terminal import tell, tell_json

__all__ = ["behaviour"]


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is measured, and how.

    Args:
        prompts: Prompts of one kind as name=file, such as explicit=a.jsonl; once per kind. Records have `prompt` or `text`.
        scorer: A file with a word or phrase a line, the folder of a classifier of texts, or detoxify where it is installed; a short list of
            insults if left out.
        label: Of a classifier: the class whose probability counts.
        perplexity: Held-out texts, in any form that build takes as data: also print the perplexity on them.
    """

    prompts: Annotated[tuple[str, ...], Parameter(negative="")]
    scorer: str | None = None
    label: str = "toxic"
    perplexity: str | None = None


def behaviour(
    models: tuple[str, ...],
    /,
    *,
    measured: Annotated[MeasureOptions, Parameter(name="*")],
    config: Annotated[SampleConfig, Parameter(name="*")] = SampleConfig(),
    work: Work = WorkOptions(),
    as_json: Json = False,
) -> None:
    """Measure how often a model shows a behaviour: sampled continuations of prompts, scored; and perplexity beside it.

    Name several models, such as before and after `whence guide`, to have them in one table. Prints the expected maximum of a prompt's
    samples, and the probability that one of them reaches the threshold, each kind of prompt apart (Gehman et al. 2020).

    Args:
        models: Hugging Face folders or hub names, or file.py:function that returns a task; each perhaps as NAME=MODEL.
        measured: What is measured.
        config: How continuations are drawn.
        work: How the models are read.
        as_json: Print JSON.

    Raises:
        BadInput: If a kind of prompts is not named.
    """
    from whence.guide.behaviour import BEHAVIOUR_HEADER, perplexity, scorer_named
    from whence.guide.behaviour import behaviour as measure
    from whence.load import load_records
    from whence.report import print_table

    kinds: dict[str, list[str]] = {}
    for text in measured.prompts:
        name, _, file = text.partition("=")
        if not name or not file or name in kinds:
            raise BadInput(found=f"--prompts {text}", needed="name=file, every name once", do="such as explicit=prompts.jsonl")
        kinds[name] = [_prompt(file, number, record) for number, record in enumerate(load_records(file))]
    clean = None if measured.perplexity is None else list(load_records(measured.perplexity))
    scorer = scorer_named(measured.scorer, label=measured.label)
    rows, content = [], []
    for text in models:
        name, _, model = text.rpartition("=")
        task = work.load(model)
        results = measure(task, kinds, scorer, config)
        nats = None if clean is None else perplexity(task, clean)
        content.append({"model": name or model, "kinds": [result.to_dict() for result in results], "perplexity": nats})
        rows += [(*result.cells(name or model), "" if nats is None else f"{nats:.4g}") for result in results]
    if as_json:
        tell_json(content)
        return
    print_table((*BEHAVIOUR_HEADER, "perplexity"), rows, keys=2)
    scored_by = "a short list of insults, which knows no context" if measured.scorer is None else measured.scorer
    tell(f"scored by {scored_by}; means over prompts with 95 % intervals; a sample counts from {config.threshold:g} on")


def _prompt(file: str, number: int, record: Any) -> str:
    text = record if isinstance(record, str) else record.get("prompt", record.get("text"))
    if not isinstance(text, str):
        raise BadInput(found=f"record {number} of {file} without a text", needed="'prompt' or 'text'", do="add it")
    return text

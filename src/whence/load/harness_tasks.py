"""Queries from the tasks of lm-evaluation-harness and Inspect by name, where these packages are installed."""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from whence.errors import BadInput, first_line
from whence.load.harness import harness_record, inspect_record

__all__ = ["task_records"]

_NAME = re.compile(r"(lm_eval|inspect):(.+?)(?:\[:(\d+)\])?", re.DOTALL)
_PACKAGES = {"lm_eval": ("lm-evaluation-harness", "pip install lm_eval"), "inspect": ("Inspect", "pip install inspect-ai")}


def task_records(name: str) -> list[dict[str, Any]] | None:
    """The documents of an evaluation's task as queries, as `harness_records` makes them of samples.

    Multiple choice becomes the right answer with the others as its `foil`, a generated one the answer that is wanted. Prompts are those that
    the task makes, with as many examples in them as its configuration says.

    Args:
        name: `lm_eval:TASK`, a task, group or tag of lm-evaluation-harness, or the path of a YAML file of one; `inspect:PACKAGE/TASK`, or
            `inspect:FILE.py@TASK`. `[:100]` behind it takes the first hundred documents of each task. Its data is downloaded unless it is at
            hand, and code that it brings is run.

    Returns:
        The records; None if the name is of another form.

    Raises:
        BadInput: If the package is not installed, or the task cannot be loaded or has no documents.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    package, task, limit = match[1], match[2], None if match[3] is None else int(match[3])
    if limit == 0:
        raise BadInput(found=f"{name!r}, which takes nothing", needed="one document or more", do="such as [:100]")
    read = {"lm_eval": _of_harness, "inspect": _of_inspect}[package]
    try:
        records = list(read(task, limit))
    except BadInput:
        raise
    except ImportError as error:
        title, install = _PACKAGES[package]
        raise BadInput(
            found=f"{name!r} without {title} ({first_line(error)})", needed="the package that has the task", do=install
        ) from error
    except Exception as error:  # whatever a task, its data or the network brings
        raise BadInput(
            found=f"{name!r}, which cannot be loaded ({type(error).__name__}: {first_line(error)})",
            needed="a task that the package knows, and its data",
            do="check the name, and whether its data can be downloaded or is at hand",
        ) from error
    if not records:
        raise BadInput(found=f"{name!r} without a document", needed="a task with data", do="check the name")
    return records


def _of_harness(name: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Documents of a task of lm-evaluation-harness (0.4), as its own requests ask about them.

    Yields:
        A record for each.
    """
    tasks = _harness_tasks(name)
    for title, task in tasks.items():
        if hasattr(task, "set_fewshot_seed"):
            task.set_fewshot_seed(1234)  # as its own command does where nothing is said
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        requests: dict[Any, list[Any]] = {}
        for request in task.instances:
            requests.setdefault(request.doc_id, []).append(request)
        for number, of_document in requests.items():
            ordered = sorted(of_document, key=lambda request: request.idx)
            sample = {
                "doc_id": number if len(tasks) == 1 else f"{title}/{number}",
                "arguments": [request.args for request in ordered],
                "target": _target(task, ordered[0].doc),
            }
            yield harness_record(f"lm_eval:{name}", number, sample)


def _harness_tasks(name: str) -> dict[str, Any]:
    """Its tasks, however deep in groups."""
    lm_eval = import_module("lm_eval.tasks")
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    manager = lm_eval.TaskManager(include_path=str(path.parent) if is_file else None, include_defaults=not is_file)
    if hasattr(manager, "load"):
        return dict(manager.load([name])["tasks"])
    tasks: dict[str, Any] = {}

    def add(nested: dict[Any, Any]) -> None:
        for title, task in nested.items():
            add(task) if isinstance(task, dict) else tasks.update({str(title): task})

    add(lm_eval.get_task_dict([name], manager))
    return tasks


def _target(task: Any, document: Any) -> Any:
    """What is right of a document: of multiple choice the number of the choice, or of several."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return task.doc_to_target(document)
    # Where the contexts are the choices, what is asked about says which of them is the right one.
    is_of_contexts = bool(getattr(task, "multiple_input", 0))
    target = task.doc_to_text(document) if is_of_contexts else task.doc_to_target(document)
    if isinstance(target, str) and hasattr(task, "doc_to_choice"):
        choices = list(task.doc_to_choice(document))
        return choices.index(target) if target in choices else target
    return target


def _of_inspect(name: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Samples of a task of Inspect.

    Yields:
        A record for each, whose completion is what is wanted.

    Raises:
        BadInput: If a sample says nothing of that.
    """
    tasks = _inspect_tasks(name)
    for task in tasks:
        for number, sample in enumerate(islice(task.dataset, limit), start=1):
            content = sample.model_dump(mode="json")
            label = number if content.get("id") is None else content["id"]
            content |= {"id": label if len(tasks) == 1 else f"{task.name}/{label}"}
            if not content.get("choices"):
                target = content.get("target") or ""
                target = target if isinstance(target, str) else target[0]
                if not target:
                    raise BadInput(
                        found=f"sample {label} of inspect:{name} without a target or choices",
                        needed="an answer that is wanted",
                        do="run the task, and pass its log, which has what the model said",
                    )
                content["output"] = {"completion": target}
            yield inspect_record(content)


def _inspect_tasks(name: str) -> Sequence[Any]:
    """The tasks that `inspect eval NAME` would run.

    Raises:
        LookupError: If there are none.
    """
    import_module("inspect_ai")  # first: it says best what is missing
    # No public function finds a task as the command does: in packages, files and on the hub.
    tasks = import_module("inspect_ai._eval.loader").load_tasks([name])
    if not tasks:
        raise LookupError("no such task")
    return tasks

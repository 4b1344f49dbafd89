"""Queries from what evaluations write: samples of lm-evaluation-harness, and logs of Inspect.

Neither package is needed: their files are read as they are. A multiple-choice sample becomes the right answer with the other ones as its
`foil`, a generated one the completion; what was wanted stands under `answer`.
"""

import ast
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.plain_files import open_plain
from whence.strict_json import parse_json

__all__ = ["harness_record", "harness_records", "inspect_record"]

# Of a member of an archive, unpacked.
_MOST_BYTES = 64 << 20


def harness_records(path: str | Path) -> list[dict[str, Any]] | None:
    """The samples of an evaluation as queries.

    Args:
        path: `samples_*.jsonl` of `lm_eval --log_samples`, or a log of Inspect, `.eval` or `.json`.

    Returns:
        Records with `id`, `prompt`, `completion` and, where they are known, `foil` and `answer`; None if the file is something else.

    Raises:
        BadInput: If it is such a file and cannot be read.
    """
    path = Path(path)
    if path.suffix == ".eval":
        return [inspect_record(sample) for sample in _archived(path)]
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return None
    try:
        with open_plain(path) as file:
            first = parse_json(file.readline(_MOST_BYTES)) if path.suffix == ".jsonl" else parse_json(file.read(_MOST_BYTES))
    except (OSError, ValueError):
        return None  # whoever reads plain records says what is wrong with it
    if path.suffix == ".json":
        is_log = isinstance(first, Mapping) and {"eval", "samples"} <= first.keys()
        return [inspect_record(sample) for sample in first["samples"] or ()] if is_log else None
    if not isinstance(first, Mapping) or not {"doc", "arguments", "target"} <= first.keys():
        return None
    with open_plain(path) as file:
        return [harness_record(path.name, number, parse_json(line)) for number, line in enumerate(file) if line.strip()]


def harness_record(source: str, number: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of lm-evaluation-harness (0.4): a request per choice, or one with the settings of a generation, or a text alone.

    Args:
        source: What it is of, for errors.
        number: Of the sample, its id if it has no other.
        sample: With `arguments` and `target`: the text that is wanted (of several, the first is asked about), or the number of a choice, or
            of several.

    Raises:
        BadInput: If it has no request, or it is not clear which choice is the right one.
    """
    arguments = sample["arguments"]
    requests = [
        [request.get("arg_0"), request.get("arg_1")] if isinstance(request, Mapping) else [*request, None][:2]
        for request in (arguments.values() if isinstance(arguments, Mapping) else arguments)
    ]
    name, target = str(sample.get("doc_id", number)), _as_written(sample["target"])
    if not requests or not all(len(request) == 2 and isinstance(request[0], str) for request in requests):
        raise BadInput(
            found=f"sample {name} of {source} without a text that the model was given",
            needed="'arguments' as lm-evaluation-harness 0.4 writes them",
            do="run it again with --log_samples",
        )
    if len(requests) == 1 and requests[0][1] is None:  # the likelihood of a whole text
        return {"id": name, "text": requests[0][0]}
    if len(requests) == 1 and not isinstance(requests[0][1], str):  # generated
        wanted = [str(text) for text in (target if isinstance(target, list | tuple) else [target])]
        if not wanted:
            raise BadInput(
                found=f"sample {name} of {source} without a target", needed="an answer that is wanted", do="leave it out"
            )
        return {"id": name, "prompt": requests[0][0], "completion": _spaced(wanted[0]), "answer": _one_or_all(wanted)}
    choices = [{"prompt": prompt, "completion": end} for prompt, end in requests if isinstance(end, str)]
    if len(requests) > 1:  # the unconditional requests of acc_mutual_info have another context
        same = [choice for choice in choices if choice["prompt"]]
        choices = same or choices
    right = _right_choices(f"sample {name} of {source}", target, [choice["completion"].strip() for choice in choices])
    wrong = [choice for index, choice in enumerate(choices) if index not in right]
    answer = _one_or_all([choices[index]["completion"] for index in right])
    return {"id": name, **choices[right[0]], "answer": answer, **({"foil": wrong} if wrong else {})}


def _as_written(target: Any) -> Any:
    """A target whose list the harness's log holds as Python prints it."""
    if not isinstance(target, str) or not (target.startswith("[") and target.endswith("]")):
        return target
    try:
        several = ast.literal_eval(target)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return target
    return several if all(isinstance(text, str | int) for text in several) else target


def _right_choices(where: str, target: Any, texts: list[str]) -> list[int]:
    """Numbers of the choices that a target names, by number or by text.

    Raises:
        BadInput: If it names none, or may mean several.
    """
    if len(texts) == 1:
        return [0]  # a likelihood of one text
    targets = list(target) if isinstance(target, list | tuple) else [target]
    numbers = []
    for value in targets:
        text = str(value).strip()
        by_number = {int(text)} if text.isdecimal() and int(text) < len(texts) else set()
        by_text = set() if isinstance(value, int) else {index for index, choice in enumerate(texts) if choice == text}
        meant = by_number | by_text
        if len(meant) != 1:
            raise BadInput(
                found=f"{where} with the target {text[:60]!r}, which is {'no choice' if not meant else 'several choices'}",
                needed="the number of a choice, or its text",
                do="load the task by name (lm_eval:TASK), which tells numbers from texts" if meant else "leave it out",
            )
        numbers += meant
    if not numbers:
        raise BadInput(found=f"{where} without a right choice", needed="one or more", do="leave it out")
    return numbers


def _archived(path: Path) -> Iterator[Mapping[str, Any]]:
    """The samples of an `.eval` file, a zip archive with a JSON file for each.

    Yields:
        One after the other.

    Raises:
        BadInput: If it is not one, or compressed in a way that Python does not read.
    """
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.startswith("samples/") and member.filename.endswith(".json"):
                    # A sample that is longer is cut, and no JSON any more.
                    with archive.open(member) as content:
                        yield parse_json(content.read(_MOST_BYTES), any_number=True)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise BadInput(
            found=f"{path}, which cannot be read ({error})",
            needed="a log of Inspect",
            do="write it as JSON with `inspect log convert --to json`",
        ) from error


def inspect_record(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of Inspect: what was asked, what the model said, and what was wanted.

    Args:
        sample: With `id`, `input`, `target` and `choices` or `output`.

    Raises:
        BadInput: If it says none of that.
    """
    try:
        prompt, target = _text_of(sample["input"]), sample.get("target", "")
        targets = [str(target)] if isinstance(target, str) else [str(text) for text in target]
        name = f"{sample['id']}" if sample.get("epoch", 1) == 1 else f"{sample['id']} ({sample['epoch']})"
        choices = sample.get("choices") or []
        if choices:
            letters = {chr(ord("A") + number): text for number, text in enumerate(choices)}
            right = [letters.get(text, text) for text in targets]
            wrong = [{"prompt": prompt, "completion": _spaced(text)} for text in choices if text not in right]
            return {"id": name, "prompt": prompt, "completion": _spaced(right[0]), "foil": wrong, "answer": right}
        output = sample["output"]
        answer = output.get("completion") or _text_of([output["choices"][0]["message"]])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadInput(
            found=f"a sample without {error}: {json.dumps(sample, default=str)[:80]}",
            needed="samples of Inspect with 'id', 'input', 'target' and 'output'",
            do="leave it out",
        ) from error
    return {"id": name, "prompt": prompt, "completion": _spaced(answer), "answer": [text for text in targets if text]}


def _text_of(messages: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(messages, str):
        return messages
    texts = []
    for message in messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part["text"] for part in content if part.get("type") == "text"]
        texts += parts
    return "\n\n".join(texts)


def _one_or_all(texts: Sequence[str]) -> str | list[str]:
    """What documents are searched for: a text, or each of several that are right."""
    stripped = [text.strip() for text in texts]
    return stripped[0] if len(stripped) == 1 else stripped


def _spaced(text: str) -> str:
    """A completion that does not run into the prompt."""
    return text if text[:1].isspace() else f" {text}"

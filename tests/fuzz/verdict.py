"""Tries a case: asks whence, follows the advice of refusals, and judges what comes of it."""

import re
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import whence
from tests.fuzz.case import Case, smaller
from tests.fuzz.losses import LOSSES
from tests.fuzz.oracle import Expected, NotPlain, expected_gradients, has_forward_mode
from tests.fuzz.program import Program, make_program
from tests.fuzz.questions import Asked, ask, wrong

__all__ = ["OUTCOMES", "Verdict", "judge", "shrunk", "signature"]

OUTCOMES = {
    "right": "right at once",
    "right as advised": "refused, and right once the advice of the message was followed",
    "refused": "refused with the true cause",
    "not plain": "does not run one example at a time in plain PyTorch",
    "finding": "findings",
}
_STEPS = 3
"""Refusals in a row after which advice counts as endless."""


@dataclass
class Verdict:
    """What came of a case.

    Args:
        outcome: A key of `OUTCOMES`.
        detail: What is wrong, or why it was refused.
        refusals: Signatures of the messages on the way.
        trace: Of an exception that is no `WhenceError`.
    """

    outcome: str
    detail: str = ""
    refusals: list[str] = field(default_factory=list)
    trace: str = ""


def judge(case: Case) -> Verdict:
    """Try a case.

    An answer has to equal plain autograd's, one example at a time. A refusal has to name a cause that the program has; one that gives advice
    instead is followed, as a user would, and judged by what comes of it.
    """
    program = make_program(case)
    functional: bool | list[str] = program.functional()
    ignored: list[str] = []
    refusals: list[str] = []
    trial = None
    while True:
        program = make_program(case)
        trial = _tried(program, functional, ignored, trial)
        if trial.error is None:
            break
        if not isinstance(trial.error, whence.WhenceError):
            if trial.plain_error and not program.limits:
                return Verdict("not plain", trial.plain_error, refusals)
            trace = "".join(traceback.format_exception(trial.error)[-12:])
            return Verdict("finding", f"traceback: {_place(trial.error)}", refusals, trace)
        message = str(trial.error)
        refusals.append(signature(message))
        if cause := _cause(program, trial, message):
            return Verdict("refused", cause, refusals)
        advised = _advised(trial.error, functional, ignored)
        if advised is None or len(refusals) > _STEPS:
            if trial.plain_error:
                return Verdict("not plain", trial.plain_error, refusals)
            end = "without a true cause" if advised is None else "again and again"
            return Verdict("finding", f"refused {end}: {message}", refusals)
        functional, ignored = advised
    if trial.plain_error:
        return Verdict("finding", f"an answer where plain autograd fails: {trial.plain_error}", refusals)
    assert trial.answer is not None and trial.known is not None
    if detail := wrong(trial.answer, trial.known) or trial.left or _new_warning(trial):
        return Verdict("finding", detail, refusals)
    return Verdict("right as advised" if refusals else "right", "", refusals)


def shrunk(case: Case, verdict: Verdict, judging: Callable[[Case], Verdict] = judge, seconds: float = 15.0) -> Case:
    """A smaller case with the same finding.

    Args:
        case: The case.
        verdict: Its verdict.
        judging: What tries a case.
        seconds: How long to go on.
    """
    wanted, end = _sort(verdict), time.monotonic() + seconds
    progress = True
    while progress:
        progress = False
        for other in smaller(case):
            if time.monotonic() > end:
                return case
            try:
                same = _sort(judging(other)) == wanted
            except Exception:  # a smaller case need not be a possible one
                same = False
            if same:
                case, progress = other, True
                break
    return case


def signature(message: str) -> str:
    """A message without names and numbers, to count alike ones together."""
    message = re.sub(r"\(\[.*?\] (together|against).*?\)", "(...)", message)
    message = re.sub(r"\[[^\]]*\]", "[...]", message)
    message = re.sub(r"'[^']*'", "'...'", message)
    return re.sub(r"-?\d[\d.,]*(e-?\d+)?", "#", message)


@dataclass
class _Trial:
    """One question to whence.

    Args:
        known: What is expected, if plain autograd can tell.
        plain_error: Why it cannot.
        records: Training records as the oracle takes them.
        tracked: Names of the attributed parameters.
        answer: What whence says.
        error: What it raises instead.
        left: What is not as it was in the model.
        warnings: What Python warned of.
    """

    known: Expected | None = None
    plain_error: str = ""
    records: list[Any] = field(default_factory=list)
    tracked: tuple[str, ...] = ()
    answer: Asked | None = None
    error: Exception | None = None
    left: str = ""
    warnings: tuple[str, ...] = ()


def _tried(program: Program, functional: bool | list[str], ignored: list[str], before: _Trial | None) -> _Trial:
    trial = _Trial()
    state = _state(program)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            task = program.task(functional, ignored)
            trial.tracked = tuple(sorted(task.tracked))
            train, queries = (task.prepare(program.records(records)) for records in (program.train, program.queries))
        except Exception as error:
            trial.error = error
            return trial
        try:
            trial.answer = ask(Asked(program, task, train, queries))
        except Exception as error:
            trial.error = error
    trial.warnings = tuple(str(item.message) for item in caught)
    trial.left = _left(state, _state(program), program)
    if before is not None and before.records:  # the same program, asked with other options
        trial.records, trial.known, trial.plain_error = before.records, before.known, before.plain_error
        return trial
    trial.records = program.plain(program.train, train)
    try:
        trial.known = expected_gradients(program, trial.records, program.plain(program.queries, queries))
    except NotPlain as error:
        trial.plain_error = str(error)
    return trial


_MIXED = re.compile(r"depends on the other examples|divided by the number of examples|of shape .* for \d+ examples")


_OF_PYTORCH = re.compile(r"Triggered internally|^`torch.jit.script`")
"""What PyTorch says once in a process, of itself: in these trials whoever comes first hears it."""


def _cause(program: Program, trial: _Trial, message: str) -> str:
    """The cause that a refusal gives, if the program has it."""
    case, known = program.case, trial.known
    if _MIXED.search(message):
        return "examples that are mixed" if program.mixes_examples else ""
    if "changes from call to call" in message:
        return "a random loss" if LOSSES[case.loss].is_random else ""
    for limit in program.limits:
        if re.search(limit, message):
            return f"a stated limit: {limit}"
    if "no parameter to attribute" in message:
        return "no parameter" if not trial.tracked else ""
    if re.search(r"\bof (nan|-?inf)\b|NaN or infinite", message):
        return "a value that is not finite" if known is None or not known.is_finite else ""
    if "does not depend on any tracked layer" in message:
        return "no gradient" if known is not None and not any(bool(part.any()) for part in known.rows(trial.tracked)) else ""
    if "matrix cannot go through" in message:
        return "" if has_forward_mode(program, trial.records[0]) else "no forward-mode derivative"
    if "weights of type torch.bfloat16" in message:
        return "second derivatives in half precision" if case.dtype == "bfloat16" and case.method in ("pcg", "cg") else ""
    return ""


def _advised(
    error: whence.WhenceError, functional: bool | list[str], ignored: list[str]
) -> tuple[bool | list[str], list[str]] | None:
    """Options as a refusal advises; None if it says nothing that can be done, or what was done already."""
    advice = error.do
    if "functional=True" in advice and functional is not True:
        return True, ignored
    for pattern in (r"functional=\[([^\]]*)\]", r"add (.*) to functional"):
        if match := re.search(pattern, advice):
            names = re.findall(r"""['"]([^'"]+)['"]""", match[1])
            held = functional if isinstance(functional, list) else []
            if set(names) - set(held):
                return [*held, *names], ignored
    if match := re.search(r"ignore=\[([^\]]*)\]", advice):
        names = re.findall(r"""['"]([^'"]+)['"]""", match[1])
        if set(names) - set(ignored):
            return functional, [*ignored, *names]
    return None


def _state(program: Program) -> dict[str, Any]:
    """What whence has to leave alone in a model."""
    model = program.model
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def _left(before: dict[str, Any], after: dict[str, Any], program: Program) -> str:
    for name, value in before.items():
        if name == "values":
            changed = [key for key in value if not _same(value[key], after[name].get(key))]
            # max_norm changes the table whenever it is read.
            if changed and "max_norm" not in program.case.stem:
                return f"the model is not as it was: {changed[0]}"
        elif value != after[name]:
            return f"the model is not as it was: {name}"
    return ""


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(value, other)


def _new_warning(trial: _Trial) -> str:
    assert trial.known is not None
    new = [text for text in trial.warnings if text not in trial.known.warnings and not _OF_PYTORCH.search(text)]
    return f"warning: {new[0].splitlines()[0]}" if new else ""


def _place(error: Exception) -> str:
    """An exception with the last line of whence on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{Path(frame.filename).name}:{frame.name}" for frame in frames if "whence" in Path(frame.filename).parts]
    return f"{type(error).__name__} in {own[-1] if own else 'no line of whence'}: {str(error).splitlines()[0] if str(error) else ''}"


def _sort(verdict: Verdict) -> tuple[str, str]:
    return verdict.outcome, signature(verdict.detail).split("(tolerance")[0].split(":")[0] + "|" + _first_words(verdict.detail)


def _first_words(detail: str) -> str:
    return "" if detail.startswith("wrong scores") else signature(detail)[:120]

"""What the exact methods let be chosen in a word, and what a type cannot say of their fields."""

from dataclasses import fields
from typing import Any, Literal, get_args

from whence.errors import BadInput, UnknownOption

__all__ = ["Form", "Matrix", "Normalize", "check_exact"]

Normalize = Literal["cosine", "relatif", "theta-relatif"]
Matrix = Literal["gauss_newton", "hessian"]
Form = Literal["full", "diagonal"]
"""How the exponential of P H is taken where the optimizer multiplies gradients with P: whole, or of its diagonal."""

_POSITIVE = (
    "iterations",
    "tolerance",
    "examples",
    "rank",
    "batch_examples",
    "repeats",
    "segments",
    "query_rank",
    "checkpoints",
    "members",
)
_CHOICES = {"normalize": (None, *get_args(Normalize)), "matrix": get_args(Matrix), "form": get_args(Form)}


def check_exact(settings: Any) -> None:
    """What a type cannot say of a field.

    Raises:
        BadInput: If a number is not positive, or options do not go together.
        UnknownOption: If a word is none of the choices.
    """
    for field_ in fields(settings):
        value = getattr(settings, field_.name)
        if field_.name in _POSITIVE and value is not None and not value > 0:
            raise BadInput(
                found=f"{field_.name}={value} for {settings.name}", needed="a positive number", do=f"leave {field_.name} out"
            )
        if field_.name in _CHOICES and value not in _CHOICES[field_.name]:
            choices = ", ".join(word for word in _CHOICES[field_.name] if word)
            raise UnknownOption(found=f"{field_.name}={value!r}", needed=f"one of: {choices}", do="pick one")
    if getattr(settings, "members", None) is not None and getattr(settings, "run", None) is None:
        raise BadInput(
            found=f"members for {settings.name} without a run",
            needed="the folder of a recorded training run, by whose steps they are trained",
            do="record one with whence.Recorder and pass run='folder' (--run FOLDER), or leave members out",
        )
    if getattr(settings, "members", None) is not None and settings.checkpoints != type(settings).checkpoints:
        raise BadInput(
            found=f"checkpoints={settings.checkpoints} with members={settings.members} for {settings.name}",
            needed="one of them: further models take the place of checkpoints",
            do="leave one of the two out",
        )
    if getattr(getattr(settings, "damping", None), "rule", None) is not None:
        raise BadInput(
            found=f"a damping rule for {settings.name}",
            needed="a number, since the published rules are for the rows of a store",
            do="pass Damping(relative=...) or Damping(absolute=...)",
        )

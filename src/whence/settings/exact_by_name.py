"""The settings of an exact method from its name and options, and what other rooms ask of them."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.settings.checks import DAMPINGS, shown
from whence.settings.curvature import Damping, FitConfig
from whence.settings.exact import ExactSettings

__all__ = [
    "checked_settings",
    "exact_settings",
    "factors_folder",
    "final_settings",
    "fit_of",
    "keeping_factors",
    "refuse_along",
    "settings_record",
    "takes_option",
]

_KINDS: dict[str, type[ExactSettings]] = {kind.name: kind for kind in get_args(ExactSettings)}
# Options by name on the way to nested settings. A rule is for stores.
_DAMPING = {option: name for option, name in DAMPINGS.items() if name != "rule"}
_FIT = ("labels", "samples", "sharing", "largest_side", "directions")


def exact_settings(method: str, options: Mapping[str, Any]) -> ExactSettings:
    """The settings of an exact method from flat options, as command lines and files have them.

    Args:
        method: Its name.
        options: By name: fields of the method's record, of its damping (`relative_damping`, `absolute_damping`) and of its fit. A None was
            not given. `seed` is that of the fit and of the solver.

    Returns:
        The settings.

    Raises:
        BadInput: If the method does not take an option.
        UnknownOption: If there is no such method.

    >>> exact_settings("pcg", {"relative_damping": 0.5, "iterations": 5}).iterations
    5
    """
    _check_method(method)
    exact_method_named(method)
    return _named(_KINDS[method], {name: value for name, value in options.items() if value is not None})


def checked_settings(method: str | ExactSettings) -> ExactSettings:
    """The settings of an exact method: its name stands for its defaults.

    Raises:
        BadInput: If the method is neither name nor settings, or one through a run has none.
        UnknownOption: If there is no such method.
    """
    _check_method(method)
    if isinstance(method, str):
        exact_method_named(method)
        method = _KINDS[method]()
    if exact_method_named(method.name).needs_run and getattr(method, "run", "") is None:
        raise BadInput(
            found=f"method={method.name!r} without a run",
            needed="the folder of a recorded training run",
            do=f"record one with whence.Recorder and pass {type(method).__name__}(run='folder') (--run FOLDER)",
        )
    return method


def _check_method(method: Any) -> None:
    kinds = tuple(_KINDS.values())
    if isinstance(method, (str, *kinds)):
        return
    is_class = isinstance(method, type) and issubclass(method, kinds)
    raise BadInput(
        found=f"method={shown(method)}",
        needed="the name of a method, or its settings",
        do=f"write {method.__name__}()" if is_class else "pass a name of `whence methods`, or a record such as whence.EKFAC()",
    )


def final_settings(method: str | ExactSettings) -> ExactSettings:
    """The settings of a method of the final weights, where one inverse serves query and example alike.

    Args:
        method: As in `checked_settings`.

    Raises:
        BadInput: If the method goes back through a recorded run, is averaged over one, or scores are to be divided by norms.
    """
    _check_method(method)
    name = method if isinstance(method, str) else method.name
    if exact_method_named(name).needs_run:
        raise BadInput(
            found=f"method={name!r}, which goes back through a recorded run",
            needed="a method of the final weights, with one inverse for query and example",
            do="pass method='ekfac', or attribute with it",
        )
    settings = checked_settings(method)
    refuse_along(settings)
    if (normalize := getattr(settings, "normalize", None)) is not None:
        raise BadInput(
            found=f"normalize={normalize!r} where scores are not divided by norms",
            needed="scores as they are",
            do="leave it out, or attribute with it",
        )
    return settings


def refuse_along(settings: ExactSettings) -> None:
    """Refuse settings that average over a recorded run, where the final weights alone are looked at.

    Raises:
        BadInput: If there is a run.
    """
    run = getattr(settings, "run", None)
    if run is not None:
        raise BadInput(
            found=f"run={str(run)!r} for {settings.name}",
            needed="the final weights alone: only tables of scores are averaged over a run",
            do="leave run out, or call whence.attribute",
        )


def takes_option(method: str | ExactSettings, name: str) -> bool:
    """Whether a method has a setting of that name, flat as in `exact_settings`."""
    exact_method_named(method if isinstance(method, str) else method.name)
    return name in _flat_names(_KINDS[method] if isinstance(method, str) else type(method))


def factors_folder(settings: ExactSettings) -> Path | None:
    """Where a method keeps its fitted curvature; None if it keeps none."""
    factors = getattr(settings, "factors", None)
    return None if factors is None else Path(factors)


def keeping_factors(settings: ExactSettings, folder: Path) -> ExactSettings:
    """The settings with a folder for the fitted curvature, where the method fits one and no folder is named."""
    if exact_method_named(settings.name).factors is None or factors_folder(settings) is not None:
        return settings
    return replace(settings, factors=folder)  # pyright: ignore[reportCallIssue]


def settings_record(settings: ExactSettings) -> dict[str, Any]:
    """What scores depend on besides model and data, as JSON takes it: not where files lie."""
    apart = ("factors", "fit_on", "run", "checkpoints", "members", "damping")
    names = [item.name for item in fields(settings) if item.name not in apart]
    return {name: asdict(value) if isinstance(value := getattr(settings, name), FitConfig) else value for name in names}


def fit_of(settings: ExactSettings) -> FitConfig:
    """How a method fits its curvature; the defaults for one without."""
    return getattr(settings, "fit", FitConfig())


def _named(kind: type[ExactSettings], options: Mapping[str, Any]) -> ExactSettings:
    own = [item.name for item in fields(kind)]
    taken = [name for name in own if name not in ("damping", "fit")]
    taken += list(_DAMPING) if "damping" in own else []
    taken += [*_FIT, *(["seed"] if "seed" not in own else [])] if "fit" in own else []
    for name in options:
        if name not in taken:
            record = name if name in own else ""  # a record inside the settings, which by name are its fields
            others = [] if record else [other for other, settings in _KINDS.items() if name in _flat_names(settings)]
            raise BadInput(
                found=f"{name} for {kind.name}",
                needed=f"what it takes: {', '.join(sorted(taken))}",
                do=f"leave {name} out" + (f", or pass a method that takes it: {', '.join(others)}" if others else ""),
            )
    given = {name: value for name, value in options.items() if name in own}
    if "damping" in own:
        given["damping"] = Damping(**{_DAMPING[name]: value for name, value in options.items() if name in _DAMPING})
    if "fit" in own:
        given["fit"] = FitConfig(**{name: value for name, value in options.items() if name in (*_FIT, "seed")})
    return kind(**given)


def _flat_names(kind: type[ExactSettings]) -> list[str]:
    own = [item.name for item in fields(kind)]
    return [*own, *(_DAMPING if "damping" in own else ()), *((*_FIT, "seed") if "fit" in own else ())]

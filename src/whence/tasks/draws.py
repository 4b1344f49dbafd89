"""What an example's loss is a mean over: draws of time, noise and augmentation, and of whether the network is told anything.

Axes: K draws of an example.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, first_line
from whence.functions import function_at, is_function
from whence.plain_files import open_plain
from whence.settings import typed
from whence.tasks.fields import as_numbers
from whence.tasks.noise import NoiseSchedule

__all__ = ["Augment", "Draws", "Guidance", "augmented", "drawn", "dropped"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From an image and a generator, which is all its chance comes from, to the image as training saw it, in the same shape."""


@dataclass(frozen=True, kw_only=True)
@typed
class Draws:
    """The times and noise that an example's loss is a mean over.

    Args:
        draws: Draws per example: the error of each gradient falls with their root, time grows with their number.
        shared: Whether all examples have the same draws, so that what chance adds is the same in all gradients; otherwise each has its own.
        stratified: Whether draw k takes its time from the k-th of `draws` equal parts; otherwise from all times.
        seed: Of the draws.
        min_snr: What the signal-to-noise ratio is cut to in the weight of a time, where training weighs times so (Hang et al. 2023, section
            3.4: min(SNR, gamma) of the image's squared error, 5 as a rule); None weighs all alike.
        at_once: Draws of an example that go through the network together, a divisor of `draws`; None takes all. Memory is bounded by these,
            gradients are the same, and the network runs forward a second time.
        augment: What training did to images before it added noise: "flip" (left and right, half of the time), or a function
            `augment(image, generator)`, itself or as file.py:function; each draw has one of its own. What is measured is never augmented.

    Raises:
        BadInput: If numbers are not positive, the draws do not split evenly, or the augmentation is no function.
    """

    draws: int = 16
    shared: bool = True
    stratified: bool = True
    seed: int = 0
    min_snr: float | None = None
    at_once: int | None = None
    augment: Any = None

    def __post_init__(self):
        if self.draws < 1:
            raise BadInput(found=f"draws={self.draws}", needed="1 draw or more", do="correct it")
        if self.at_once is not None and (self.at_once < 1 or self.draws % self.at_once):
            raise BadInput(
                found=f"at_once={self.at_once} of {self.draws} draws",
                needed="a divisor of the draws, so that all parts are alike",
                do="correct one of the two",
            )
        is_named = isinstance(self.augment, str) and (self.augment == "flip" or is_function(self.augment))
        if self.augment is not None and not is_named and not callable(self.augment):
            raise BadInput(
                found=f"augment={self.augment!r:.60}",
                needed="'flip', a function augment(image, generator), or file.py:function",
                do="pass one of them, or leave it out",
            )

    def augmentation(self) -> Augment | None:
        """The function itself."""
        if self.augment is None or callable(self.augment):
            return cast(Augment | None, self.augment)
        return _flipped if self.augment == "flip" else cast(Augment, function_at(self.augment))


@dataclass(frozen=True, kw_only=True, eq=False)
@typed
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): training hid from the network, now and then, what it is told of an image.

    Args:
        drop: How probable it was in training that label and condition were hidden (algorithm 1, p_uncond), 0.1 as a rule. The loss of an
            example is then a mean over draws of that, too.
        null_label: The label that stands for nothing, often the number after the last class.
        null_condition: The condition that stands for nothing, such as the states of an empty text: an array in the shape of one
            condition, or a file of it (.npy). A record's own `null_label` and `null_condition` come first.
        scale: What a query is measured with, and sampled with: u + scale (c - u), where u is the prediction without and c the one with what
            the network is told, the `guidance_scale` of diffusers; 1 is c alone.

    Raises:
        BadInput: If the probability is none below 1, or the null label or condition is none.
    """

    drop: float = 0.0
    null_label: int | None = None
    null_condition: Any = None
    scale: float = 1.0

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise BadInput(found=f"drop={self.drop}", needed="a probability from 0 to below 1", do="correct it")
        if self.null_label is not None and self.null_label < 0:
            raise BadInput(found=f"null_label={self.null_label}", needed="a label from 0", do="correct it")
        if isinstance(self.null_condition, str | Path):
            object.__setattr__(self, "null_condition", _from_file(self.null_condition))
        if self.null_condition is not None:
            array = as_numbers(self.null_condition)
            if array is None or not np.isfinite(array).all():
                what = f"of type {type(self.null_condition).__name__}" if array is None else "with NaN or infinite numbers"
                raise BadInput(found=f"a null_condition {what}", needed="an array of finite numbers", do="convert it")
            object.__setattr__(self, "null_condition", array)

    @property
    def is_used(self) -> bool:
        """Whether anything is hidden, in training or in what is measured."""
        return self.drop > 0 or self.scale != 1

    def nulls(self) -> Mapping[str, Any]:
        """What stands for nothing, by the name of what is hidden; what is not known is left out."""
        nulls = {"label": self.null_label, "condition": self.null_condition}
        return {name: value for name, value in nulls.items() if value is not None}

    def identity(self) -> tuple[Any, ...]:
        """What tells the training losses from those with another guidance."""
        if not self.drop:
            return ()
        condition = b"" if self.null_condition is None else self.null_condition.astype(np.float64).tobytes()
        return self.drop, self.null_label, hashlib.sha256(condition).hexdigest()


def drawn(
    noised: Draws, schedule: NoiseSchedule, name: str, shape: tuple[int, ...], *, kind: Literal["", "asked:"] = ""
) -> tuple[Tensor, Tensor]:
    """Times (K,) and noise (K, ...) of an example, from the seed, the draw's number and, unless draws are shared, its id.

    Args:
        noised: How they are drawn.
        schedule: Whose times they are.
        name: The example's id.
        shape: Of its image.
        kind: "asked:" for draws of queries alone, which no training example has.
    """
    uniform, noise = [], []
    for number in range(noised.draws):
        generator = _generator(noised, name, f"diffusion:{kind}1", number)
        uniform.append(torch.rand((), generator=generator, dtype=torch.float64))
        noise.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    uniform_K = torch.stack(uniform)
    if noised.stratified:
        uniform_K = (torch.arange(noised.draws) + uniform_K) / noised.draws
    return schedule.times(uniform_K), torch.stack(noise)


def dropped(noised: Draws, name: str, drop: float) -> Tensor:
    """In which draws an example's label and condition are hidden, shape (K,): each with probability `drop`.

    Stratified draws hide as many as that says, spread over all times, but for one more or less.
    """
    if noised.stratified:
        start = torch.rand((), generator=_generator(noised, name, "diffusion:drop:1", 0), dtype=torch.float64)
        return (torch.arange(noised.draws + 1) * drop + start).floor().diff() > 0
    generators = [_generator(noised, name, "diffusion:drop:1", number) for number in range(noised.draws)]
    return torch.stack([torch.rand((), generator=each, dtype=torch.float64) for each in generators]) < drop


def augmented(noised: Draws, augment: Augment, name: str, image: Tensor) -> Tensor:
    """An example's image as each draw sees it, shape (K, ...).

    Raises:
        BadInput: If the augmentation gives something else than an image of that shape.
    """
    try:
        seen = [augment(image.clone(), _generator(noised, name, "diffusion:augment:1", k)) for k in range(noised.draws)]
    except Exception as error:
        raise BadInput(
            found=f"an augmentation that fails on the example {name!r} ({type(error).__name__}: {first_line(error)})",
            needed="a function augment(image, generator)",
            do="correct it; the error that this one comes from says where",
        ) from error
    for each in seen:
        if not isinstance(each, Tensor) or each.shape != image.shape:
            what = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else f"type {type(each).__name__}"
            raise BadInput(
                found=f"an augmented image of {what} for the example {name!r}",
                needed=f"a tensor of shape {tuple(image.shape)}",
                do="correct the function augment(image, generator)",
            )
    return torch.stack(seen)


def _flipped(image: Tensor, generator: torch.Generator) -> Tensor:
    return image.flip(-1) if float(torch.rand((), generator=generator)) < 0.5 else image


def _generator(noised: Draws, name: str, kind: str, number: int) -> torch.Generator:
    key = f"whence:{kind}:{noised.seed}:{number}:{'' if noised.shared else name}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)


def _from_file(path: str | Path) -> Any:
    """The array in a file.

    Raises:
        BadInput: If there is none.
    """
    try:
        with open_plain(Path(path), is_named=True) as file:
            return np.load(file, allow_pickle=False)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes in it
        raise BadInput(
            found=f"null_condition={str(path)!r}, which cannot be read ({first_line(error)})",
            needed="a file that numpy.save wrote",
            do="check the path",
        ) from error

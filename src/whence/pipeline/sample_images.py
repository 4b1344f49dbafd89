"""Images made by a diffusion model, as queries about it.

Axes: Q images, J steps of a trajectory.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whence.capture import frozen
from whence.errors import BadInput
from whence.tasks import Diffusion, condition_rows, step_back
from whence.tasks.base import precision

__all__ = ["sample_images"]


def sample_images(
    task: Diffusion,
    count: int,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    labels: Sequence[int] | None = None,
    conditions: Sequence[Any] | None = None,
    seed: int = 0,
    batch_images: int = 64,
) -> list[dict[str, Any]]:
    """Images drawn from a diffusion model: by ancestral sampling (Ho et al. 2020, algorithm 2), or along the straight paths of flow matching.

    With `Guidance(scale=...)` they are drawn under classifier-free guidance. Every image has noise of its own, from the seed and its number,
    so that more of them or other batches change none.

    Args:
        task: The model and its schedule.
        count: How many.
        shape: Of one image, such as (3, 32, 32).
        steps: Steps from noise to image; None takes all of the schedule, or 50 for flow matching.
        labels: A class number for each image, for networks that are given one.
        conditions: What else the network is told of each image, such as the states of a text encoder.
        seed: Of the noise.
        batch_images: Images at a time.

    Returns:
        Records for `task.prepare`: `id`, `image`, `label` and `condition` if given, and, for schedules in steps, `trajectory` (J + 1, ...)
        from noise to the image, with the number of each step in `steps` (J,).

    Raises:
        BadInput: If counts do not match or are not positive, or there are more steps than the schedule has.
    """
    kept_S = task.schedule.kept_S
    if steps is None:
        steps = 50 if kept_S is None else len(kept_S)
    most = steps if kept_S is None else len(kept_S)
    if count < 1 or not 1 <= steps <= most or batch_images < 1:
        raise BadInput(
            found=f"count={count}, steps={steps}, batch_images={batch_images}",
            needed=f"positive numbers, and at most the {most:,} steps of the schedule",
            do="correct them",
        )
    for name, values in (("labels", labels), ("conditions", conditions)):
        if values is not None and len(values) != count:
            raise BadInput(found=f"{len(values)} {name} for {count} images", needed="one for each", do="correct them")
    records = []
    for start in range(0, count, batch_images):
        numbers = range(start, min(start + batch_images, count))
        conditioning: dict[str, Tensor] = {}
        if labels is not None:
            conditioning["label"] = torch.tensor([labels[number] for number in numbers], device=task.device)
        if conditions is not None:
            rows = condition_rows([conditions[number] for number in numbers])
            conditioning["condition"] = rows.to(task.device, precision(task.model))
        if task.guidance.scale != 1:
            conditioning |= task.nulls(conditioning)
        generators = [_generator(seed, number) for number in numbers]
        path = _path(task, generators, tuple(shape), steps, conditioning)
        for index, number in enumerate(numbers):
            record: dict[str, Any] = {"id": f"generated-{number}", "image": path[-1][index].cpu()}
            if labels is not None:
                record["label"] = int(labels[number])
            if conditions is not None:
                record["condition"] = conditions[number]
            if kept_S is not None:
                record["trajectory"] = torch.stack([images[index].cpu() for images in path])
                record["steps"] = _times(task, steps)
            records.append(record)
    return records


def _path(
    task: Diffusion, generators: Sequence[torch.Generator], shape: tuple[int, ...], steps: int, conditioning: dict[str, Tensor]
) -> list[Tensor]:
    """Noisy images from noise to image, one tensor (Q, ...) per step and one more."""
    dtype = precision(task.model)

    def noise() -> Tensor:
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
        return torch.stack(drawn).to(task.device, dtype)

    times = _times(task, steps)
    path = [noise()]
    with frozen(task.model), torch.no_grad():
        for index, time in enumerate(times):
            now = time.to(task.device).expand(len(generators))
            noisy = path[-1]
            if task.schedule.kept_S is None:
                path.append(noisy - task.guided(task.model, noisy, now, conditioning) / steps)
                continue
            estimate = task.denoised(task.model)(noisy, now, conditioning)
            if index == len(times) - 1:
                path.append(estimate)
                continue
            mean, variance = step_back(task.schedule, noisy, estimate, now, times[index + 1].to(task.device).expand(len(now)))
            path.append(mean + variance.sqrt() * noise())
    return path


def _times(task: Diffusion, steps: int) -> Tensor:
    """Times of the network's calls, falling."""
    if task.schedule.kept_S is None:
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    last = len(task.schedule.kept_S) - 1
    return torch.linspace(last, 0, steps, dtype=torch.float64).round().long()


def _generator(seed: int, number: int) -> torch.Generator:
    key = hashlib.sha256(f"whence:sample:1:{seed}:{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)

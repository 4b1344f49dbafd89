"""Diffusion by the formulas: one example, one draw at a time, plain autograd."""

import math

import torch
from torch import Tensor


def draws(task, example) -> list[tuple[Tensor, Tensor]]:
    """Time and noise of each draw, read off the batch of the example alone."""
    batch = task.collate([example])
    return list(zip(batch["time"][0], batch["noise"][0], strict=True))


def mixture(kept: Tensor | None, time: Tensor) -> tuple[float, float]:
    if kept is None:
        return 1 - float(time), float(time)
    return math.sqrt(kept[time]), math.sqrt(1 - kept[time])


def error(task, example, time: Tensor, noise: Tensor) -> Tensor:
    """Prediction minus target for one draw, in the image's shape; attached to the graph."""
    image = torch.as_tensor(example.fields["image"]).to(noise)
    signal, strength = mixture(task.schedule.kept_S, time)
    given = time[None] if task.schedule.kept_S is not None else (time[None] * task.schedule.time_scale).to(noise)
    arguments = [(signal * image + strength * noise)[None], given]
    if "label" in example.fields:
        arguments.append(torch.as_tensor(example.fields["label"])[None])
    if "condition" in example.fields:
        arguments.append(torch.as_tensor(example.fields["condition"]).to(noise)[None])
    targets = {"noise": noise, "v": signal * noise - strength * image, "image": image, "flow": noise - image}
    found = task.model(*arguments)
    return (getattr(found, "sample", found)[0] - targets[task.prediction]), found


def loss(task, example) -> Tensor:
    """Mean over draws of the mean squared error."""
    errors = [error(task, example, time, noise)[0].square().mean() for time, noise in draws(task, example)]
    return torch.stack(errors).mean()


def loss_by_image_errors(task, example) -> Tensor:
    """Mean over draws of min(SNR, gamma) times the mean squared error of the image that the prediction stands for (Hang et al. 2023)."""
    image = torch.as_tensor(example.fields["image"])
    parts = []
    for time, noise in draws(task, example):
        signal, strength = mixture(task.schedule.kept_S, time)
        noisy, found = signal * image + strength * noise, error(task, example, time, noise)[1]
        predicted = getattr(found, "sample", found)[0]
        estimates = {
            "noise": lambda p=predicted, x=noisy, a=signal, b=strength: (x - b * p) / a,
            "v": lambda p=predicted, x=noisy, a=signal, b=strength: a * x - b * p,
            "image": lambda p=predicted: p,
        }
        parts.append(
            min((signal / strength) ** 2, task.noised.min_snr) * (estimates[task.prediction]() - image).square().mean()
        )
    return torch.stack(parts).mean()


def square_norm(task, example) -> Tensor:
    squares = [error(task, example, time, noise)[1].square().mean() for time, noise in draws(task, example)]
    return torch.stack(squares).mean()


def gradient(task, value: Tensor) -> dict[str, Tensor]:
    """By parameter name."""
    names, parameters = zip(*[pair for pair in task.model.named_parameters() if pair[0] in task.tracked], strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def gauss_newton(task, example) -> Tensor:
    """(1/K) sum over draws of J^T (2/C) J with the Jacobian of the output, all parameters in one axis; shape (P, P)."""
    total = None
    parameters = [p for n, p in task.model.named_parameters() if n in task.tracked]
    pairs = draws(task, example)
    for time, noise in pairs:
        output = error(task, example, time, noise)[0].flatten()
        rows = []
        for number in range(len(output)):
            grads = torch.autograd.grad(output[number], parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)])
            )
        jacobian = torch.stack(rows)
        part = 2.0 / len(output) * jacobian.T @ jacobian
        total = part if total is None else total + part
    return total / len(pairs)


def negative_elbo_by_terms(
    kept: Tensor, image: Tensor, estimates: dict[int, list[Tensor]], noises: dict[int, list[Tensor]]
) -> float:
    """KL terms of Ho et al. 2020, equation 5, from means and variances; `estimates` are of the noise, by step and draw."""
    size = image.numel()
    last = kept[-1]
    total = 0.5 * float(last * image.square().sum() + size * (1 - last) - size - size * math.log(1 - last))
    for step, found in estimates.items():
        terms = []
        for estimated, noise in zip(found, noises[step], strict=True):
            noisy = kept[step].sqrt() * image + (1 - kept[step]).sqrt() * noise
            guess = (noisy - (1 - kept[step]).sqrt() * estimated) / kept[step].sqrt()
            if step == 0:
                variance = (1 - kept[0]) / kept[0]
                density = (image - guess).square().sum() / variance + size * math.log(2 * math.pi * variance)
                terms.append(0.5 * float(density))
                continue
            alpha = kept[step] / kept[step - 1]
            variance = (1 - kept[step - 1]) / (1 - kept[step]) * (1 - alpha)
            weight = kept[step - 1].sqrt() * (1 - alpha) / (1 - kept[step])
            terms.append(0.5 * float((weight * (image - guess)).square().sum() / variance))
        total += sum(terms) / len(terms)
    return total


def told_draws(task, example) -> list[dict]:
    """What each draw of the training loss is, read off the batch of the example alone: time, noise, image and what the network is told."""
    batch = task.collate([example])
    found = []
    for number, (time, noise) in enumerate(draws(task, example)):
        is_hidden = "hidden" in batch and bool(batch["hidden"][0, number])
        names = [name for name in ("label", "condition") if name in batch]
        image = batch["augmented"][0, number] if "augmented" in batch else batch["image"][0]
        named = [batch[f"null_{name}" if is_hidden else name][0] for name in names]
        found.append({"time": time, "noise": noise, "image": image, "told": named})
    return found


def prediction(task, time: Tensor, noise: Tensor, image: Tensor, told: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The network's prediction for one draw of one image, and its target."""
    signal, strength = mixture(task.schedule.kept_S, time)
    found = task.model((signal * image + strength * noise)[None], time[None], *[value[None] for value in told])
    targets = {"noise": noise, "v": signal * noise - strength * image, "image": image}
    return getattr(found, "sample", found)[0], targets[task.prediction]


def training_loss(task, example) -> Tensor:
    """Mean over draws of the error on what training saw: another image each time, and nothing told where that was hidden."""
    errors = []
    for draw in told_draws(task, example):
        predicted, target = prediction(task, **draw)
        errors.append((predicted - target).square().mean())
    return torch.stack(errors).mean()


def guided_loss(task, example, scale: float) -> Tensor:
    """Mean over draws of the error of u + scale (c - u), one network call for each."""
    batch = task.collate([example])
    errors = []
    for time, noise in draws(task, example):
        image = batch["image"][0]
        names = [name for name in ("label", "condition") if name in batch]
        with_it, target = prediction(task, time, noise, image, [batch[name][0] for name in names])
        without, _ = prediction(task, time, noise, image, [batch[f"null_{name}"][0] for name in names])
        errors.append(((1 - scale) * without + scale * with_it - target).square().mean())
    return torch.stack(errors).mean()

"""Which training images does a generated digit come from, and is it true? A few minutes on a CPU.

A small diffusion model is trained on real digits of 8 x 8 pixels, makes some images, and EK-FAC says which training images they come
from. Then the model is trained again without the highest scored ones, and without as many random ones, to see what the generated image loses.

    python examples/diffusion/digits.py --output diffusion-digits

Axes: N training images, R images that the network sees.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import whence
from whence.report import images_section, table_section, write_page

SCHEDULE = whence.tasks.NoiseSchedule.cosine(100)


class Denoiser(nn.Module):
    """Convolutions over patches of 2 x 2 pixels, told the time by sines and cosines."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, images, steps):
        """The noise in noisy images (R, 1, 8, 8) at these steps (R,)."""
        angles = steps[:, None] * torch.logspace(0, -2, 8)
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        hidden = self.first(nn.functional.pixel_unshuffle(images, 2))
        hidden = hidden + self.middle(nn.functional.silu(self.norm(hidden) + told))
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(hidden)), 2)


def train(images, seed, epochs):
    """A denoiser that predicts the noise, by Adam."""
    torch.manual_seed(seed)
    model = Denoiser()
    steps = epochs * math.ceil(len(images) / 25)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    signal, strength = (part.float()[:, None, None, None] for part in SCHEDULE.mix(torch.arange(100)))
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(25):
            times = torch.randint(100, (len(batch),))
            noise = torch.randn(len(batch), 1, 8, 8)
            predicted = model(signal[times] * images[batch] + strength[times] * noise, times)
            optimizer.zero_grad()
            (predicted - noise).square().mean().backward()
            optimizer.step()
            falling.step()
    return model.eval()


def task_of(model):
    """All examples with the same 64 draws of time and noise; estimates of the image are cut to the range of pixels."""
    return whence.Diffusion(
        model, schedule=SCHEDULE, noised=whence.tasks.Draws(draws=64), measured=whence.tasks.Measured(clip=1.0)
    )


def main():
    """Train, generate, attribute, remove, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("diffusion-digits"))
    parser.add_argument("--images", type=int, default=100, help="training images")
    parser.add_argument("--generated", type=int, default=4, help="generated images")
    parser.add_argument("--removed", type=int, default=10, help="training images removed for the proof")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="training runs per condition")
    asked = parser.parse_args()

    bunch = load_digits()
    images = torch.from_numpy(bunch.images[: asked.images] / 8.0 - 1.0).float()[:, None]
    records = [{"id": f"train-{n}", "image": image, "source": f"a {bunch.target[n]}"} for n, image in enumerate(images)]
    task = task_of(train(images, 0, asked.epochs))
    made = whence.pipeline.sample_images(task, asked.generated, (1, 8, 8))
    dataset, queries = task.prepare(records), task.prepare(made)
    table = whence.attribute(task, dataset, queries)

    def losses(kept):
        """Mean loss of each generated image over networks trained on what is kept."""
        found = []
        for seed in range(1, 1 + asked.seeds):
            again = task_of(train(images[kept], seed, asked.epochs))
            with torch.no_grad():
                found.append(again.loss(again.model, again.collate(queries.examples)))
        return torch.stack(found).mean(0)

    def without(places):
        return torch.tensor([n for n in range(len(images)) if n not in places])

    generator = torch.Generator().manual_seed(0)
    whole = losses(torch.arange(len(images)))
    by_chance = losses(without(set(torch.randperm(len(images), generator=generator)[: asked.removed].tolist())))
    rows = []
    for place, name in enumerate(table.query_ids):
        top = table.scores[place].topk(asked.removed).indices.tolist()
        rise = float(losses(without(set(top)))[place] - whole[place])
        rows.append((name, float(whole[place]), rise, float(by_chance[place] - whole[place])))

    header = ("generated image", "loss", f"rise without its top {asked.removed}", f"rise without {asked.removed} random")
    shown = images_section(
        table,
        {record["id"]: record["image"] for record in made},
        {record["id"]: record["image"] for record in records},
        low=-1.0,
        captions={record["id"]: record["source"] for record in records},
    )
    page = write_page(
        asked.output / "influence.html",
        "Where generated digits come from",
        [("Most influential training images", shown), ("Trained again without them", table_section(header, rows))],
    )
    (asked.output / "removal.json").write_text(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1))
    print(*header, sep=" | ")
    for name, *numbers in rows:
        print(name, *(f"{number:+.4f}" for number in numbers), sep=" | ")
    print(f"page: {page}")


if __name__ == "__main__":
    main()

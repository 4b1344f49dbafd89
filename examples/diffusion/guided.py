"""Digits drawn under classifier-free guidance, and the training images that they come from. A few minutes on a CPU.

A small class-conditional UNet of diffusers learns real digits of 8 x 8 pixels; in one draw of seven it is not told which digit it sees. It
then draws two digits of each class under guidance, and EK-FAC says which training images they come from: measured with and without that
guidance, and with draws of time and noise that queries share with training or have to themselves. It prints a table and leaves the pipeline
and the images in files, for `whence build|query --task diffusion`.

    pip install 'whence-tda[diffusion]' scikit-learn
    python examples/diffusion/guided.py --output guided-digits

Axes: N training images, Q queries.
"""

import argparse
from pathlib import Path

import diffusers
import numpy as np
import torch
from sklearn.datasets import load_digits

import whence

DROP, NULL = 0.15, 10


def network():
    """A UNet of diffusers, with attention at the bottom; class 10 stands for not being told."""
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=11,
    )  # fmt: skip


def train(images, labels, scheduler, steps):
    """The network after so many steps of Adam, with labels dropped as classifier-free guidance has it."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (25,))
        times, noise = torch.randint(len(scheduler), (25,)), torch.randn(25, 1, 8, 8)
        told = torch.where(torch.rand(25) < DROP, NULL, labels[batch])
        noisy = scheduler.add_noise(images[batch], noise, times)
        optimizer.zero_grad()
        (model(noisy, times, told).sample - noise).square().mean().backward()
        optimizer.step()
        falling.step()
    return model.eval()


def task_of(pipeline, *, draws, query_draws, scale):
    """The task as `whence build --task diffusion` makes it of the same options."""
    return whence.tasks.load_diffusion(
        pipeline,
        noised=whence.tasks.Draws(draws=draws, at_once=min(draws, 16)),
        measured=whence.tasks.Measured(clip=1.0, draws=query_draws),
        guidance=whence.tasks.Guidance(drop=DROP, null_label=NULL, scale=scale),
    )


def rank_correlation(first, second):
    """Spearman's, of every row, and the mean over rows."""
    ranks = [scores.argsort(1).argsort(1).double() for scores in (first, second)]
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]).mean())


def main():
    """Train, draw, attribute in four ways, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("guided-digits"))
    parser.add_argument("--images", type=int, default=100, help="training images")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--draws", type=int, default=16, help="of time and noise, per image")
    parser.add_argument("--converged", type=int, default=96, help="draws of what the ranks are held against")
    asked = parser.parse_args()

    bunch = load_digits()
    images = torch.from_numpy(bunch.images[: asked.images] / 8.0 - 1.0).float()[:, None]
    labels = torch.from_numpy(bunch.target[: asked.images])
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    pipeline = asked.output / "pipeline"
    diffusers.DDPMPipeline(train(images, labels, scheduler, asked.steps), scheduler).save_pretrained(pipeline)
    drawn = task_of(pipeline, draws=1, query_draws="training", scale=3.0)
    made = whence.pipeline.sample_images(drawn, 20, (1, 8, 8), labels=[number // 2 for number in range(20)])
    np.savez(
        asked.output / "train.npz", image=images.numpy(), label=labels.numpy(), ids=[f"train-{n}" for n in range(len(images))]
    )
    kept = {name: np.stack([np.asarray(record[name]) for record in made]) for name in ("image", "label")}
    np.savez(asked.output / "made.npz", **kept, ids=[record["id"] for record in made])

    train_data, queries = (whence.load.load_records(str(asked.output / name)) for name in ("train.npz", "made.npz"))
    digits = [int(record["label"]) for record in made]

    def scores_of(draws, query_draws, scale):
        task = task_of(pipeline, draws=draws, query_draws=query_draws, scale=scale)
        return whence.attribute(task, train_data, queries, runtime=whence.Runtime(quiet=True)).scores

    print("guidance | query draws | scores above 0 | of the query's digit among its top 5 | ranks against many draws")
    for scale in (1.0, 3.0):
        converged = scores_of(asked.converged, "own", scale)
        ways = [("training", asked.draws, scores_of(asked.draws, "training", scale))]
        ways += [("own", asked.draws, scores_of(asked.draws, "own", scale)), ("own", asked.converged, converged)]
        for query_draws, draws, scores in ways:
            top = scores.topk(5, 1).indices
            same = torch.tensor([[int(labels[n]) == digit for n in row] for row, digit in zip(top, digits, strict=True)])
            share, alike = float((scores > 0).double().mean()), rank_correlation(scores, converged)
            print(
                f"{scale:g} | {draws} {query_draws} | {share:.2f} | {float(same.double().mean()):.0%} | {alike:.2f}", flush=True
            )


if __name__ == "__main__":
    main()

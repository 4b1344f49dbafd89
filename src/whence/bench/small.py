"""Small networks on small real data: training runs of a second, for banks of hundreds of them.

Axes: N examples, Q queries, D inputs.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, digest_of
from whence.recording import Recorder
from whence.records import Recipe

__all__ = ["READER_LENGTH", "READER_WORDS", "SmallLosses", "SmallRetrain", "SmallSettings", "new_network"]

READER_WORDS, READER_LENGTH = 2000, 40
"""Words that the reader knows, and how many of a text it reads."""

# Of a stage, as many as Bae et al. (2024) take of a run.
_CHECKPOINTS = 6

Network = Literal["mlp", "cnn", "table", "reader"]


@dataclass(frozen=True, kw_only=True)
class SmallSettings:
    """Network and training run: SGD with momentum or AdamW, the learning rate falling to zero along a cosine.

    Args:
        optimizer: "sgd" or "adamw".
        network: See `new_network`.
        epochs: Passes over what is kept.
        batch_examples: Examples per step.
        learning_rate: At the start.
        momentum: Heavy-ball coefficient of SGD.
        weight_decay: L2 coefficient.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    network: Network = "mlp"
    epochs: int = 30
    batch_examples: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-3

    def recipe(self, num_examples: int) -> Recipe:
        """What damping needs to know of a run on so many examples."""
        momentum = self.momentum if self.optimizer == "sgd" else 0.0
        return Recipe(self.optimizer, sum(self.rates(num_examples)), momentum=momentum, weight_decay=self.weight_decay)

    def rates(self, num_examples: int) -> Sequence[float]:
        """Learning rate of every step of a run on so many examples."""
        steps = self.epochs * -(-num_examples // self.batch_examples)
        return [self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


def new_network(network: Network, seed: int) -> nn.Module:
    """An untrained network whose weights depend on nothing but the arguments.

    Args:
        network: "mlp" (flat 8 x 8 images, 64-64-32-10, ReLU), "cnn" (two convolutions with pooling, one linear layer), "table" (10
            columns, 10-16-1, tanh), or "reader" (a GPT-2 of two layers and width 48 that reads 40 words and tells four classes by the
            mean of its states).
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if network == "table":
            return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
        if network == "reader":
            return _Reader()
        if network == "mlp":
            return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        )


class _Reader(nn.Module):
    """Word numbers (B, L) to logits (B, 4)."""

    def __init__(self):
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(
            vocab_size=READER_WORDS, n_positions=READER_LENGTH, n_embd=48, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.network = GPT2Model(config)
        self.classes = nn.Linear(48, 4)

    def forward(self, words_BL: Tensor) -> Tensor:
        """Logits, shape (B, 4)."""
        return self.classes(self.network(words_BL).last_hidden_state.mean(1))


@dataclass(frozen=True)
class SmallRetrain:
    """Training as a bank calls it: picklable, from a mask and a seed to a network.

    Args:
        inputs_ND: All training inputs.
        targets_N: Classes (integers), or real targets.
        settings: Network and training run.
        second_stage: Number of the first example of a second stage: those before it are trained on first, the rest after them with a
            fresh schedule; None for one stage.
    """

    inputs_ND: Tensor
    targets_N: Tensor
    settings: SmallSettings
    second_stage: int | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of data and settings."""
        settings = json.dumps(asdict(self.settings), sort_keys=True)
        return digest_of(self.inputs_ND, self.targets_N, settings, self.second_stage, torch.__version__).hex()

    def __call__(self, keep: Tensor, seed: int) -> nn.Module:
        """The network trained on what `keep` marks; shape (N,)."""
        model = new_network(self.settings.network, seed)
        generator = np.random.default_rng(seed)
        for stage in self._stages(keep):
            self._fit(model, stage, generator, self._optimizer(model), None)
        return model.eval()

    def recorded(self, seed: int, folder: Path, data: Dataset, checkpoints: int = _CHECKPOINTS) -> nn.Module:
        """The same on all examples, recorded for attribution through training.

        Args:
            seed: Of weights and batches.
            folder: Of the run.
            data: The examples as they will be attributed.
            checkpoints: Of each stage.
        """
        ids = data.ids
        model = new_network(self.settings.network, seed)
        generator = np.random.default_rng(seed)
        stages = self._stages(torch.ones(len(ids), dtype=torch.bool))
        steps = min(len(self.settings.rates(int(stage.sum()))) for stage in stages)
        with Recorder(folder, model, self._optimizer(model), every=-(-steps // checkpoints), seed=seed, data=data) as run:
            run.resume(0)  # seconds long: one that was stopped begins again
            for number, stage in enumerate(stages):
                optimizer = self._optimizer(model)
                run.stage(f"stage {number + 1}", optimizer)
                self._fit(model, stage, generator, optimizer, lambda batch: run.batch(ids[row] for row in batch.tolist()))
        return model.eval()

    def _stages(self, keep: Tensor) -> list[Tensor]:
        """What is kept, by stage."""
        if self.second_stage is None:
            return [keep]
        is_first = torch.arange(len(keep)) < self.second_stage
        return [keep & is_first, keep & ~is_first]

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        settings = self.settings
        if settings.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        return torch.optim.SGD(
            model.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def _fit(
        self,
        model: nn.Module,
        keep: Tensor,
        generator: np.random.Generator,
        optimizer: torch.optim.Optimizer,
        tell: Callable[[Tensor], None] | None,
    ) -> None:
        settings = self.settings
        rates = iter(settings.rates(int(keep.sum())))
        for _ in range(settings.epochs):
            # Drawn over all examples, so that leaving one out does not reshuffle the others.
            order = torch.from_numpy(generator.permutation(len(keep)))
            for batch in order[keep[order]].split(settings.batch_examples):
                optimizer.param_groups[0]["lr"] = next(rates)
                if tell is not None:
                    tell(batch)
                optimizer.zero_grad(set_to_none=True)
                _losses(model, self.inputs_ND[batch], self.targets_N[batch]).mean().backward()
                optimizer.step()


@dataclass(frozen=True)
class SmallLosses:
    """What a bank measures: the loss of each query.

    Args:
        inputs_QD: The queries.
        targets_Q: Their classes or real targets.
    """

    inputs_QD: Tensor
    targets_Q: Tensor

    @property
    def fingerprint(self) -> str:
        """Digest of the queries."""
        return digest_of(self.inputs_QD, self.targets_Q).hex()

    def __call__(self, model: nn.Module) -> Tensor:
        """One loss per query, shape (Q,)."""
        with torch.no_grad():
            return _losses(model, self.inputs_QD, self.targets_Q)


def _losses(model: nn.Module, inputs_ND: Tensor, targets_N: Tensor) -> Tensor:
    outputs = model(inputs_ND)
    if targets_N.is_floating_point():
        return 0.5 * (outputs[:, 0] - targets_N).square()
    return nn.functional.cross_entropy(outputs, targets_N, reduction="none")

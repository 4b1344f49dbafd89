"""A target that is known by its recorded outputs only: what an API gave, in a file.

Axes: M scored rows, C outputs per row, T tokens of a completion.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture import frozen
from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.evaluate.ranks import spearman
from whence.evaluate.statistics import Interval, mean_interval
from whence.pipeline.inputs import as_dataset
from whence.proxy.distil import Distilled, trained_by
from whence.settings import DistilConfig
from whence.tasks import AbstractTask, CausalLM

__all__ = ["RecordedTrust", "distil_recorded", "trust_recorded"]

_FIELD = "token_log_probabilities"
# Probabilities nearer to 0 or 1 than this say nothing more, and their logarithms rule everything else.
_EDGE = 1e-6


@dataclass(frozen=True)
class RecordedTrust:
    """How near a proxy is to its target on outputs that it was not trained on.

    Args:
        outputs: How many of them.
        nats: Mean negative log-likelihood of the target's tokens under the proxy, mean over outputs with a t-interval.
        gap: The same minus what the target itself gives them, which is 0 for a perfect copy; None without log-probabilities.
        spearman: Rank correlation over outputs of the two models' log-probabilities of whole completions; None likewise.
        token_spearman: The same over all tokens.
    """

    outputs: int
    nats: Interval
    gap: Interval | None
    spearman: float | None
    token_spearman: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "outputs": self.outputs, "nats": self.nats.to_dict(), "gap": None if self.gap is None else self.gap.to_dict(),
            "spearman": self.spearman, "token_spearman": self.token_spearman,
        }  # fmt: skip


def distil_recorded(
    proxy: AbstractTask,
    outputs: Iterable[Mapping[str, Any]],
    config: DistilConfig = DistilConfig(),
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Distilled:
    """Train a proxy, in place, on what a target said, without the target.

    A record has a `prompt`, the target's `completion` and perhaps `token_log_probabilities`, what the target gave each of its tokens. Without
    these the proxy learns the completions (sequence-level distillation, Kim and Rush 2016), which are draws of the target's distribution.
    With them it learns how probable each token was: the Kullback-Leibler divergence between "this token" and "another one" under either
    model, which is 0 where they agree. The numbers have to be of the proxy's own tokens.

    Args:
        proxy: A causal language model.
        outputs: The records.
        config: How long and how fast; `is_sampled` has no meaning here.
        seed: Of the order.
        quiet: No progress on stderr.

    Returns:
        How near the proxy came.

    Raises:
        BadInput: If there are not as many log-probabilities as tokens, or the proxy has nothing to train.
        Unsupported: If the proxy is no language model.
    """
    dataset, given = _read(proxy, outputs)

    def distance(examples: Sequence[Example]) -> tuple[Tensor, int]:
        log_q_M = _log_probabilities(proxy, examples)
        if given is None:
            return -log_q_M.sum(), len(log_q_M)
        log_p_M = torch.cat([given[example.id] for example in examples]).to(log_q_M)
        p_M, q_M = (each.exp().clamp(_EDGE, 1 - _EDGE) for each in (log_p_M, log_q_M))
        both_M = p_M * (p_M.log() - q_M.log()) + (1 - p_M) * ((-p_M).log1p() - (-q_M).log1p())
        return both_M.sum(), len(log_q_M)

    return trained_by(proxy, dataset, config, distance, seed=seed, quiet=quiet)


def trust_recorded(proxy: AbstractTask, outputs: Iterable[Mapping[str, Any]]) -> RecordedTrust:
    """How far a proxy may stand in for a target that only answers, by outputs that it was not trained on.

    It says whether the proxy speaks as the target does, which is needed and not enough: that the two learned it from the same documents only
    retraining tells (`whence evaluate`).

    Args:
        proxy: The trained proxy.
        outputs: Records as in `distil_recorded`, held out.

    Returns:
        The agreement.
    """
    dataset, given = _read(proxy, outputs)
    with frozen(proxy.model), torch.no_grad():
        values = [_log_probabilities(proxy, [example]).double().cpu() for example in dataset.examples]
    nats = torch.stack([-each.mean() for each in values])
    if given is None:
        return RecordedTrust(len(dataset), mean_interval(nats), None, None, None)
    theirs = [given[example.id].double() for example in dataset.examples]
    gaps = torch.stack([(other - each).mean() for other, each in zip(theirs, values, strict=True)])
    sums = [torch.stack([each.sum() for each in some])[None] for some in (values, theirs)]
    alike = float(spearman(*sums)[0]) if len(dataset) > 2 else None
    tokens = float(spearman(torch.cat(values)[None], torch.cat(theirs)[None])[0])
    return RecordedTrust(len(dataset), mean_interval(nats), mean_interval(gaps), alike, tokens)


def _read(proxy: AbstractTask, outputs: Iterable[Mapping[str, Any]]) -> tuple[Dataset, dict[str, Tensor] | None]:
    """The records as the proxy reads them, and by id the log-probabilities; None where no record has them.

    Raises:
        BadInput: If only some have them, or not as many as the completion has tokens.
        Unsupported: If the proxy is no language model.
    """
    if not isinstance(proxy, CausalLM):
        raise Unsupported(
            found=f"a proxy of kind {proxy.kind!r}",
            needed="a causal language model",
            do="pass whence.CausalLM(model, tokenizer)",
        )
    records = list(outputs)
    plain = [{name: value for name, value in record.items() if name != _FIELD} for record in records]
    dataset = as_dataset(proxy, plain)
    values = [record.get(_FIELD) for record in records]
    if all(value is None for value in values):
        return dataset, None
    if len(dataset) != len(records) or any(value is None for value in values):
        raise BadInput(
            found=f"{sum(value is not None for value in values)} of {len(records)} outputs with {_FIELD}",
            needed="all of them, each as one example, or none",
            do=f"leave {_FIELD} out, or drop the outputs without them",
        )
    given = {}
    for example, value in zip(dataset.examples, values, strict=True):
        count = int((torch.as_tensor(example.fields["labels"])[1:] >= 0).sum())
        numbers = torch.tensor(value, dtype=torch.float64)
        if len(numbers) != count or not bool((numbers <= 0).all()):
            raise BadInput(
                found=f"{len(numbers)} log-probabilities for the {count} tokens of the output {example.id!r}",
                needed="one for each token as the proxy reads it, none of them above 0",
                do=f"use a proxy with the target's tokenizer, or leave {_FIELD} out",
            )
        given[example.id] = numbers
    return dataset, given


def _log_probabilities(proxy: AbstractTask, examples: Sequence[Example]) -> Tensor:
    """What the proxy gives each scored token, shape (M,), in the order of the examples."""
    outputs = proxy.outputs(proxy.model, proxy.collate(examples))
    return outputs.values_MC.log_softmax(-1).gather(1, outputs.targets[:, None])[:, 0]

"""One score for every token of the training data, streamed to disk in a single pass.

Axes: M scored tokens of a batch, C vocabulary, B examples, T tokens of an example, K tokens of a file, Q queries.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from whence.capture import Blocks, Plan, as_parameters, forward_mode, frozen, in_halves, with_weights
from whence.curvature.stages import stages
from whence.data import Dataset, Example, batches
from whence.digests import digested_once
from whence.errors import BadInput, NonFinite, Unsupported
from whence.pipeline.exact.chunks import question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.exact.scorer import FittedScorer, fit_scorer
from whence.pipeline.inputs import as_dataset
from whence.progress import Meter, meter
from whence.settings import ExactSettings, Runtime, final_settings, keeping_factors, records_only
from whence.store import read_tensors
from whence.tasks import AbstractTask, CausalLM
from whence.tasks.token_loss import IGNORED

__all__ = ["TokenScores", "contrast_scores", "token_derivatives"]

# Tokens per file: what a stop can cost, and what is read at a time afterwards.
_FILE_TOKENS = 1 << 20
# Numbers in the logits of a batch, of which there are several copies on the way.
_LOGITS = {"cpu": 1 << 23}
_DEVICE_LOGITS = 1 << 28
_NOTES = "*notes"


@dataclass(frozen=True)
class TokenScores:
    """Scores of all tokens of a dataset, in files.

    Args:
        train: The examples.
        files: In order, safetensors files and the places of the examples that each holds. Their one tensor `scores`, float32, has all
            tokens of these examples one after the other, and NaN where a token is not scored.
        method: Name and settings of the method.
        notes: What else a reader should know.
    """

    train: Dataset
    files: tuple[tuple[Path, range], ...]
    method: str
    notes: tuple[str, ...]

    def parts(self) -> Iterator[tuple[range, Tensor]]:
        """File by file, so that no more than one is held.

        Yields:
            The places of its examples, and the scores of all of their tokens, shape (K,).
        """
        for path, rows in self.files:
            yield rows, read_tensors(path)["scores"]

    def examples(self) -> Iterator[Tensor]:
        """Example by example, in order.

        Yields:
            The scores of its tokens, shape (T,).
        """
        for rows, scores_K in self.parts():
            yield from scores_K.split([self.train.examples[row].length for row in rows])


@digested_once()
@records_only(method=ExactSettings, runtime=Runtime)
def contrast_scores(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    harmful: Dataset | Iterable[Any],
    safe: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> TokenScores:
    """By how much every training token raises the harmful completions over the safe ones (IF-Guide, arXiv 2506.01790, section 4.1).

    The score of token j of example i is an inner product with the gradient of that token's own loss,

        S_ij = -(1/N) (mean grad m_harmful - mean grad m_safe)^T (H + damping)^-1 grad loss_ij

    with m the log-probability of a completion. Positive: more weight on the token raises the harmful completions. The S_ij of an example add
    up to its score. As there is one query, S_ij is the derivative of loss_ij along the preconditioned query, and a forward pass with a
    tangent has those of all tokens at once.

    So this is the score of a token as a LABEL. Which part of an example's score arises at a position (`tokens_of=` of `whence.attribute`)
    is another question: the loss of later tokens goes through the same position.

    Finished files are kept and used again, and so is the fitted curvature beside them.

    Args:
        task: A causal language model.
        train: Training examples.
        harmful: Queries with the behaviour, best as prompt and completion: only the completion counts.
        safe: Queries with what should come instead.
        folder: Where the scores are kept.
        method: As in `whence.attribute`, like all the rest; none that goes back through a run. Its curvature is kept in the folder.
        runtime: How the job runs. Several processes take a part of the tokens each; all of them have to see the folder.

    Returns:
        The scores.

    Raises:
        BadInput: If the method goes back through a run, or only a part of the query's gradient is to be kept.
        Unsupported: If the task is no causal language model.
    """
    if not isinstance(task, CausalLM):
        raise Unsupported(
            found=f"a task of kind {task.kind!r}",
            needed="a causal language model, with a loss per token",
            do="pass whence.CausalLM",
        )
    folder = Path(folder)
    settings = keeping_factors(final_settings(method), folder / "curvature")
    if (rank := getattr(settings, "query_rank", None)) is not None:
        raise BadInput(found=f"query_rank={rank} for token scores", needed="the whole of the one query", do="leave it out")
    data, (queries, weights_1Q) = as_dataset(task, train), _contrast(as_dataset(task, harmful), as_dataset(task, safe))
    with runtime.ranks.connected():
        scorer = fit_scorer(task, data, settings, Demand(rows=1, queries=len(queries), is_summed=True), runtime)
        return _scored(scorer, queries, weights_1Q, settings, folder)


def _scored(scorer: FittedScorer, queries: Dataset, weights_1Q: Tensor, settings: ExactSettings, folder: Path) -> TokenScores:
    """Scores of all tokens for one weighted sum of queries; of several ranks each takes its part of every file."""
    ready, damping = scorer.prepared, scorer.damping
    task, data, ranks = ready.task, ready.train, ready.ranks

    def identity() -> dict[str, Any]:
        fitted_on = getattr(settings, "fit_on", None)
        fitted_on = fitted_on if fitted_on is None or isinstance(fitted_on, int) else as_dataset(task, fitted_on).fingerprint
        return question(ready, queries, [damping], weights=task.weights, fit_on=fitted_on, contrast=weights_1Q.tolist())

    def query() -> dict[str, Tensor]:
        blocks, notes = scorer.blocks(queries, weights_1Q)
        named = {unit.name: block for unit, block in zip(ready.plan.units, blocks, strict=True) if isinstance(block, Tensor)}
        return named | {_NOTES: torch.tensor(list("\n".join(notes).encode()), dtype=torch.uint8)}

    with stages(folder / "scores", identity, ranks, what="token scores") as run:
        query_file = run.run("query", query)
        blocks = [query_file[unit.name].to(task.device) for unit in ready.plan.units]
        parts = run.parts("tokens", [example.length for example in data.examples], _FILE_TOKENS)
        done = sum(len(rows) for name, rows in parts.items() if name in run.record["stages"])
        with meter("token scores", len(data), done=done, quiet=ready.quiet) as progress:
            for name, rows in parts.items():
                run.run(name, lambda rows=rows: {"scores": _file(ready, blocks, rows, progress)})
    files = tuple((folder / "scores" / f"{name}.safetensors", rows) for name, rows in parts.items())
    query_notes = bytes(query_file[_NOTES].tolist()).decode().splitlines()
    return TokenScores(data, files, scorer.label, (*scorer.notes, *query_notes))


def token_derivatives(
    task: CausalLM, plan: Plan, examples: Sequence[Example], blocks: Blocks, *, max_positions: int, progress: Meter
) -> list[Tensor]:
    """Derivative of every token's loss along one vector in parameter space.

    A forward pass with a tangent gives the derivative of the logits z; that of a token's loss is sum_c p_c (dz_c - dz_label).

    Args:
        task: The model.
        plan: Its units.
        examples: Whose tokens.
        blocks: The vector, per unit of shape (1, O, I).
        max_positions: Positions per batch.
        progress: Advanced by examples.

    Returns:
        Per example, shape (T,), float32 or wider, on the CPU; place j has the loss of token j, and NaN if that is not scored.

    Raises:
        NonFinite: If a derivative is NaN or infinite.
    """
    derivatives: list[Tensor] = [torch.empty(0)] * len(examples)
    if not examples:
        return derivatives
    with frozen(task.model), torch.no_grad():
        shortest = min(examples, key=lambda example: example.length)
        width = task.outputs(task.model, task.collate([shortest])).values_MC.shape[1]
    most = max(1, min(max_positions, _LOGITS.get(task.device.type, _DEVICE_LOGITS) // width))

    def run(items: Sequence[int]) -> None:
        for item, scores_T in zip(items, _batch(task, plan, [examples[item] for item in items], blocks), strict=True):
            if bool(scores_T.isinf().any()):
                raise NonFinite(
                    found=f"a NaN or infinite token score in the example {examples[item].id!r}",
                    needed="finite outputs and queries",
                    do="drop this example, raise the damping, or run in a wider type than the model's",
                )
            derivatives[item] = scores_T

    for batch in batches([example.length for example in examples], max_positions=most):
        in_halves(batch, run, task.model)
        progress.advance(len(batch))
    return derivatives


def _batch(task: CausalLM, plan: Plan, examples: Sequence[Example], blocks: Blocks) -> list[Tensor]:
    named = dict(task.model.named_parameters())
    tangent = {name: value[0].to(named[name]) for name, value in as_parameters(plan, task.model, blocks).items()}
    weights = {name: named[name].detach() for name in tangent}
    batch = task.collate(examples)
    targets: list[Tensor] = []

    def values(chosen: dict[str, Tensor]) -> Tensor:
        outputs = with_weights(task.model, chosen, lambda: task.outputs(task.model, batch))
        targets[:] = [outputs.targets]
        return outputs.values_MC

    with forward_mode(
        task.model,
        purpose="a tangent, which gives all token scores at once,",
        needed="layers with forward-mode derivatives",
        do="switch off gradient checkpointing and custom kernels",
    ):
        values_MC, tangents_MC, *_ = jvp(values, (weights,), (tangent,))
        moved_MC = tangents_MC - tangents_MC.gather(1, targets[0][:, None])
        scores_M = (values_MC.softmax(1) * moved_MC).sum(1)
    # A NaN would read as a token that is not scored.
    scores_M = scores_M.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
    scored_BT = (batch["labels"] != IGNORED).index_fill(1, torch.zeros(1, dtype=torch.long, device=task.device), False)
    scores_BT = scores_M.new_full(scored_BT.shape, torch.nan).masked_scatter(scored_BT, scores_M).cpu()
    return [row_T[: example.length] for row_T, example in zip(scores_BT, examples, strict=True)]


def _file(ready: Prepared, blocks: Blocks, rows: range, progress: Meter) -> Tensor:
    share = ready.ranks.part(len(rows))
    examples = [ready.train.examples[row] for row in rows[share.start : share.stop]]
    assert isinstance(ready.task, CausalLM)
    derivatives = token_derivatives(
        ready.task, ready.plan, examples, blocks, max_positions=ready.max_positions, progress=progress
    )
    return torch.cat(ready.ranks.gathered(torch.cat([torch.empty(0), *derivatives]).float()))


def _contrast(harmful: Dataset, safe: Dataset) -> tuple[Dataset, Tensor]:
    """Both sets in one, and the weights of the difference of their means, shape (1, Q)."""
    sides = (("harmful", harmful, 1.0), ("safe", safe, -1.0))
    examples = [replace(example, id=f"{name}/{example.id}") for name, side, _ in sides for example in side.examples]
    weights = [sign / len(side) for _, side, sign in sides for _ in side.examples]
    return Dataset(examples), torch.tensor([weights], dtype=torch.float64)

"""Corners that random programs found: layers that no position reaches, gradients that look right by chance, what a store has to remember."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import whence
from tests.reference.gradients import dense_gradients
from tests.settings import QUIET, keywords_of, small_rank
from whence.capture import check_task, plan_units
from whence.errors import BadInput, Unsupported

EXACT = ("ekfac", "kfac", "pcg", "cg", "lissa", "astra", "nystroem", "arnoldi", "datainf", "grad-dot-exact")


def pairs(*shape, count=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(*shape, generator=generator, dtype=torch.float64), number % 3) for number in range(count)]


def scores(task, records, method, **options):
    return whence.attribute(task, records, records[:2], **keywords_of(method=method, **options)).scores


def rows_of(task, records):
    """Gradients by plain autograd, one example at a time."""
    gradients = dense_gradients(task, task.prepare(records).examples)
    return torch.cat([gradients[name].flatten(1) for name in sorted(task.tracked)], 1)


class Tailed(nn.Module):
    """Has layers for positions from the ninth on, which shorter inputs do not have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.tail, self.norm, self.table = nn.Linear(4, 6), nn.LayerNorm(6), nn.Embedding(5, 6)
        self.double()

    def forward(self, inputs):
        rest = inputs[:, 8:]
        hidden = self.first(inputs).sum(1) + self.norm(self.tail(rest)).sum(1) + self.table(rest[..., 0].long()).sum(1)
        return self.out(hidden.tanh())


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("method", EXACT)
def test_layers_that_no_position_reaches_change_nothing(method, functional):
    records, model = pairs(3, 4), Tailed()
    without = whence.Classification(model, ignore=["tail.*", "norm.*", "table.*"])
    wanted = scores(without, records, method)
    assert bool(wanted.any())
    found = scores(whence.Classification(model, functional=functional), records, method)
    torch.testing.assert_close(found, wanted, rtol=1e-3 if method in ("lissa", "astra") else 1e-6, atol=1e-9)


@pytest.mark.parametrize("method", sorted(whence.methods.METHODS))
def test_stores_hold_layers_that_no_position_reaches(method, tmp_path):
    task, records = whence.Classification(Tailed()), pairs(3, 4)
    options = small_rank(method, side=4)
    store = whence.build(task, records, tmp_path / "store", config=whence.BuildConfig(method=method, **options), runtime=QUIET)
    found = whence.score_table(store, task, records[:2], runtime=QUIET).scores
    assert bool(torch.isfinite(found).all()) and found[0].argmax() == 0 and found[1].argmax() == 1


class Einsum(nn.Module):
    """Takes a layer's weight without the layer, so that hooks see no gradient of it."""

    def __init__(self, dtype):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.to(dtype)

    def forward(self, inputs):
        return self.out(torch.einsum("oi,bi->bo", self.layer.weight, inputs))


def test_a_gradient_that_is_missing_never_looks_right_by_chance():
    """Through one pair of random vectors it does for one example in three hundred, these among them."""
    for seed in (282, 358, 532, 1293):
        torch.manual_seed(seed)
        task = whence.Classification(Einsum(torch.float32))
        examples = task.prepare([(torch.randn(4), seed % 3)]).examples
        with pytest.raises(Unsupported, match="a captured gradient of 'layer.weight' that differs from autograd's"):
            check_task(task, plan_units(task), examples)


@pytest.mark.parametrize("count", [1, 5])
def test_a_store_knows_which_units_the_check_had_made_otherwise(count, tmp_path):
    torch.manual_seed(3)
    task, records = whence.Classification(Einsum(torch.float64), functional=True), pairs(4, count=count)
    store = whence.build(
        task, records, tmp_path / "store", config=whence.BuildConfig(method="grad-dot", rank=64, dtype="float64"), runtime=QUIET
    )
    found = whence.score_table(store, task, records[:1], runtime=QUIET).scores
    rows = rows_of(task, records)
    torch.testing.assert_close(found.double(), rows[:1] @ rows.T / count, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_bags_whose_gradient_is_not_that_of_the_loss_are_refused_as_embeddings_are(how):
    bag = nn.Sequential(nn.EmbeddingBag(5, 3, **how), nn.Linear(3, 3)).double()
    records = [(torch.tensor([number % 5, 1]), number % 3) for number in range(5)]
    with pytest.raises(Unsupported, match="an embedding with max_norm or scale_grad_by_freq: layer '0'; needed a plain"):
        scores(whence.Classification(bag, functional=True), records, "grad-dot-exact")
    scores(whence.Classification(bag, ignore=["0.weight"]), records, "grad-dot-exact")


def test_the_bias_of_a_norm_over_several_axes_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 3)).double()
    task, records = whence.Classification(model, track=["1.bias", "3.*"]), pairs(3, 4)
    rows = rows_of(task, records)
    wanted = rows[:2] @ rows.T / len(rows)
    torch.testing.assert_close(scores(task, records, "grad-dot-exact").double(), wanted, rtol=1e-9, atol=1e-12)


CRASHING = """
import torch, whence
from torch import nn
torch.manual_seed(0)
class Last(nn.Module):
    def forward(self, inputs):
        return inputs.to(memory_format=torch.channels_last)
model = nn.Sequential(nn.Conv2d(4, 4, 1), Last(), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
records = [(torch.randn(4, 4, 4), number % 3) for number in range(5)]
for options in ({"track": ["2.*"]}, {"track": ["2.*"], "functional": True}, {"track": ["2.*"], "functional": ["2.bias"]}):
    task, quiet = whence.Classification(model, **options), whence.Runtime(quiet=True)
    print(whence.attribute(task, records, records[:1], method="grad-dot-exact", runtime=quiet).scores)
"""


def test_a_group_norm_in_channels_last_behind_frozen_layers():
    """PyTorch ends the process there; in one of its own, so that it would not end these tests."""
    run = subprocess.run([sys.executable, "-c", CRASHING], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    assert len(set(run.stdout.splitlines())) == 1


class Quiet(nn.Module):
    """Adds a branch that no gradient goes through, but that tangents do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.other, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, inputs):
        hidden = self.layer(inputs).tanh()
        with torch.no_grad():
            hidden = hidden + 3 * self.other(hidden)
        return self.out(hidden)


def test_tangents_do_not_go_where_no_gradient_comes_from():
    """Forwards derivatives pass `torch.no_grad()`: the matrix would not be symmetric, and conjugate gradients go astray."""
    task, records = whence.Classification(Quiet()), pairs(4)
    options = {"absolute_damping": 0.1, "tolerance": 1e-10, "iterations": 500}
    rows, labels = rows_of(task, records), []
    parameters = [value for name, value in sorted(task.model.named_parameters()) if name in task.tracked]
    for inputs, _ in records:
        logits = task.model.requires_grad_(True)(inputs[None])[0]
        p = logits.detach().softmax(-1)
        for label in range(3):
            weight = p[label].sqrt() * (p - nn.functional.one_hot(torch.tensor(label), 3))
            found = torch.autograd.grad((logits * weight).sum(), parameters, retain_graph=True, allow_unused=True)
            labels.append(
                torch.cat(
                    [
                        torch.zeros_like(a).flatten() if b is None else b.flatten()
                        for a, b in zip(parameters, found, strict=True)
                    ]
                )
            )
    matrix = torch.stack(labels).T @ torch.stack(labels) / len(records)
    wanted = rows[:2] @ torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix)).double(), rows.T) / len(rows)
    for method in ("cg", "pcg"):
        assert float((scores(task, records, method, **options) - wanted).abs().max() / wanted.abs().max()) < 1e-6


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, ids):
        return self.out(checkpoint(self.layer, self.table(ids), use_reentrant=True).mean(1).tanh())


def test_reentrant_checkpoints_do_not_warn_of_what_is_left_out_on_purpose():
    torch.manual_seed(0)
    records = [(torch.tensor([number % 5, 1]), number % 3) for number in range(5)]
    task = whence.Classification(Checkpointed())
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(task, records, "grad-dot-exact")
    assert before == warnings.filters
    rows = rows_of(task, records)
    torch.testing.assert_close(found.double(), rows[:2] @ rows.T / len(rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_a_loss_that_tosses_coins_is_told_from_one_that_mixes_examples(count):
    """Of two examples' losses every fourth time the same ones are dropped."""

    def dropped(model, batch):
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return nn.functional.dropout(losses, 0.5)

    for seed in range(12):
        torch.manual_seed(seed)
        task = whence.Custom(nn.Linear(4, 3).double(), dropped)
        with pytest.raises(BadInput, match="found a loss that changes from call to call on the same examples"):
            check_task(task, plan_units(task), task.prepare(pairs(4, count=count)).examples)


class TimeFirst(nn.Module):
    """One position of two examples looks like one row that both share."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, inputs):
        hidden = self.layer(inputs.transpose(0, 1)).transpose(0, 1)
        return self.out(hidden.sum(1).tanh())


def test_a_row_that_only_looks_shared_is_refused_for_what_it_is():
    records = pairs(1, 4, count=2)
    with pytest.raises(Unsupported, match="layer 'layer' with one row for the whole batch, which is not that of all examples"):
        scores(whence.Classification(TimeFirst()), records, "grad-dot-exact")
    task = whence.Classification(TimeFirst(), functional=True)
    rows = rows_of(task, records)
    found = scores(task, records, "grad-dot-exact").double()
    torch.testing.assert_close(found, rows @ rows.T / len(rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalize", ["cosine", "relatif", "theta-relatif"])
def test_gradients_that_are_zero_have_no_direction_and_come_behind(normalize):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    records = [(torch.zeros(4).double(), 0), *pairs(4, count=4)]
    found = whence.attribute(
        whence.Classification(model), records, records, method=whence.EKFAC(normalize=normalize), runtime=QUIET
    ).scores
    assert bool(torch.isfinite(found).all()) and not bool(found[0].any()) and not bool(found[:, 0].any())


class Normed(nn.Module):
    """A gain that the norm after it takes away again: its gradient is zero but for rounding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.gain, self.out = nn.Linear(4, 6), nn.Parameter(torch.tensor(1.3)), nn.Linear(6, 3)
        self.double()

    def forward(self, inputs):
        return self.out(nn.functional.normalize(self.layer(inputs) * self.gain, dim=-1))


@pytest.mark.parametrize("method", ["ekfac", "logra"])
def test_a_gradient_of_rounding_alone_moves_scores_by_little(method, tmp_path):
    def scored(**options):
        task, records = whence.Classification(Normed(), **options), pairs(4)
        if method == "ekfac":
            return scores(task, records, method)
        store = whence.build(
            task,
            records,
            tmp_path / str(options),
            config=whence.BuildConfig(method=method, rank=64, dtype="float64"),
            runtime=QUIET,
        )
        return whence.score_table(store, task, records[:2], runtime=QUIET).scores

    found, wanted = scored(functional=["gain"]), scored(ignore=["gain"])
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 5e-3


def test_a_checkpoint_behind_what_is_left_out_is_not_taken_for_no_gradient():
    torch.manual_seed(0)
    records = [(torch.tensor([number % 5, 1]), number % 3) for number in range(5)]
    with pytest.raises(Unsupported, match="a captured gradient of 'layer.weight' that differs from autograd's"):
        scores(whence.Classification(Checkpointed(), ignore=["table.*"]), records, "grad-dot-exact")
    torch.manual_seed(0)
    task = whence.Classification(Checkpointed(), ignore=["table.*"], functional=True)
    rows = rows_of(task, records)
    found = scores(task, records, "grad-dot-exact").double()
    torch.testing.assert_close(found, rows[:2] @ rows.T / len(rows), rtol=1e-9, atol=1e-12)


def saturated(scale):
    """A classifier that is certain of every example, and wrong of the first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[2].weight.mul_(scale)
        records = [(inputs, int(model(inputs[None]).argmax())) for inputs, _ in pairs(4, count=12)]
    return whence.Classification(model), [(records[0][0], (records[0][1] + 1) % 3), *records[1:]]


@pytest.mark.parametrize("method", ["ekfac", "pcg", "datainf"])
def test_scores_that_mean_nothing_are_said_to_with_the_examples(method):
    for scale, is_absurd in ((1.0, False), (1e4, True)):
        task, records = saturated(scale)
        table = whence.attribute(task, records, records[:2], method=method, runtime=QUIET)
        told = [note for note in table.notes if "mean nothing beside measurements of up to" in note]
        assert bool(told) == is_absurd
        assert not told or "examples: '0'" in told[0]

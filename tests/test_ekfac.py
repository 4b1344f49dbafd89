"""K-FAC and EK-FAC against dense matrices, in the cases that theory calls exact, and through stops and refusals."""

from importlib import import_module

import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.reference.ekfac import (
    corrected_values,
    dense_inverse,
    fisher,
    label_gradients,
    linear_moments,
    objective_gradients,
)
from tests.reference.reflections import written_out
from whence.capture import capture, plan_units
from whence.curvature import ResolvedDamping, fit_ekfac, fit_kfac
from whence.curvature.eigenvectors import eigenvectors
from whence.curvature.labels import check_outputs, choose_labels, numbered, objectives
from whence.errors import BadInput, NonFinite, StoreCorrupt, StoreMismatch, UnknownOption, Unsupported
from whence.settings import FitConfig
from whence.store import read_tensors
from whence.tasks import Outputs

# What autograd.grad cannot differentiate, and what has several rows per example.
EXACT = [name for name in zoo.NAMES if name not in ("checkpoint_reentrant", "gpt2", "llama")]
LANGUAGE = ("gpt2", "llama")
DAMPING = ResolvedDamping(0.1, None, "")


def fitted(name, config=None, *, count=6, max_positions=1000, fit=fit_ekfac, **options):
    task, dataset = zoo.make(name, count=count)
    plan = plan_units(task)
    return task, plan, dataset, fit(task, plan, dataset, config, max_positions=max_positions, quiet=True, **options)


def close(found, wanted, rtol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()) + 1e-20)


def factor_file(tmp_path, place, **options):
    fitted(folder=tmp_path / place, **options)
    return read_tensors(tmp_path / place / "factors.safetensors")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("largest_side", [4096, 4])
def test_eigenvalues_are_the_mean_squares_of_dense_gradients_in_the_bases(name, largest_side):
    task, plan, dataset, found = fitted(name, FitConfig(largest_side=largest_side), max_positions=3 if name != "bert" else 12)
    gradients = label_gradients(task, plan, dataset.examples)
    for block, labels in zip(found.blocks, gradients, strict=True):
        close(block.values_OI, corrected_values(labels, block.outputs_OO, block.inputs_II))
        for basis, size in ((block.outputs_OO, block.unit.outputs), (block.inputs_II, block.unit.inputs)):
            if basis is not None:
                columns = written_out(basis)
                close(columns.T @ columns, torch.eye(size).double())
    exact = sum(float(fisher(labels).trace()) for labels in gradients)
    assert found.trace() == pytest.approx(exact)


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize(("largest_side", "sharing"), [(4096, "expand"), (10, "expand"), (4096, "reduce"), (10, "reduce")])
def test_eigenvalues_of_language_models_for_the_labels_that_were_drawn(name, largest_side, sharing):
    """Tied and untied embeddings, positions within an example added up before the square, padding."""
    config = FitConfig(largest_side=largest_side, sharing=sharing, samples=2)
    task, plan, dataset, found = fitted(name, config, max_positions=24)
    total = [0.0] * len(plan.units)
    for draw in range(2):

        def function(model, batch, example, draw=draw):
            rule = choose_labels(task, dataset.examples, "auto", samples=2, seed=0)
            chosen = list(objectives(task, rule, [example], stage="values"))[draw]
            return chosen(model, numbered(batch, 1, task.device))

        gradients = objective_gradients(task, plan, dataset.examples, function)
        parts = zip(total, gradients, found.blocks, strict=True)
        total = [known + corrected_values(g, block.outputs_OO, block.inputs_II) for known, g, block in parts]
    for block, wanted in zip(found.blocks, total, strict=True):
        # The norms of this Llama compute in float32, whatever the model.
        close(block.values_OI, wanted, 1e-9 if name == "gpt2" else 1e-6)


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "applied_twice", "lone_parameter"])
@pytest.mark.parametrize("fit", [fit_kfac, fit_ekfac])
def test_solve_is_the_dense_inverse_and_halves_make_its_inner_product(name, fit):
    _, plan, _, found = fitted(name, FitConfig(largest_side=20), fit=fit)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(3, unit.outputs, unit.inputs, generator=generator, dtype=torch.float64) for unit in plan.units]
    solved, half = found.solve(rows, DAMPING), found.half(rows, DAMPING)
    for block, row, back, white in zip(found.blocks, rows, solved, half, strict=True):
        inverse = dense_inverse(block, 0.1 * block.mean_eigenvalue)
        close(back.flatten(1), row.flatten(1) @ inverse)
        close(white.flatten(1) @ white.flatten(1).T, row.flatten(1) @ inverse @ row.flatten(1).T)


@pytest.mark.parametrize("fit", [fit_kfac, fit_ekfac])
def test_one_linear_layer_with_a_gaussian_likelihood_is_exact(fit):
    """Its Fisher is the identity times the inputs' second moment, a Kronecker product, whatever the weights."""
    torch.manual_seed(0)
    task = whence.Regression(nn.Linear(5, 3).double())
    dataset = task.prepare([(torch.randn(5).double(), torch.randn(3).double()) for _ in range(12)])
    plan = plan_units(task)
    found = fit(task, plan, dataset, max_positions=5, quiet=True)
    assert "all labels, weighted, 12 examples" in found.note
    exact = fisher(label_gradients(task, plan, dataset.examples)[0])
    row = torch.randn(2, 3, 6).double()
    damping = 0.1 * float(exact.trace()) / 18
    close(
        found.solve([row], DAMPING)[0].flatten(1), row.flatten(1) @ torch.linalg.inv(exact + damping * torch.eye(18).double())
    )


def test_vectors_get_their_whole_fisher():
    """A norm's scale and shift are one vector with one gradient per example: K-FAC's block is the Fisher itself."""
    task, plan, dataset, found = fitted("layer_norm", fit=fit_kfac)
    index = next(place for place, unit in enumerate(plan.units) if unit.outputs == 1)
    exact = fisher(label_gradients(task, plan, dataset.examples)[index])
    block = found.blocks[index]
    assert block.inputs_II is not None
    close(block.inputs_II @ torch.diag(block.values_OI[0]) @ block.inputs_II.T, exact)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("name", "layer"), [("linear", "body.0"), ("bert", "bert.encoder.layer.0.intermediate.dense")])
def test_factors_are_second_moments_over_real_positions(tmp_path, sharing, name, layer):
    options = {"name": name, "config": FitConfig(sharing=sharing), "max_positions": 30, "fit": fit_kfac, "count": 8}
    task, plan, dataset, found = fitted(**options, folder=tmp_path)
    index = next(place for place, unit in enumerate(plan.units) if unit.layers == (layer,))
    left, right, count = linear_moments(task, layer, dataset.examples, sharing)
    factors = read_tensors(tmp_path / "factors.safetensors")
    close(factors[f"outputs.{index}.product"], left)
    close(factors[f"inputs.{index}.product"], right)
    assert int(factors[f"count.{index}.product"]) == count
    block = found.blocks[index]
    assert block.outputs_OO is not None and block.inputs_II is not None
    values = torch.outer(
        (block.outputs_OO.T @ left @ block.outputs_OO).diag(), (block.inputs_II.T @ right @ block.inputs_II).diag()
    )
    close(block.values_OI, values / (len(dataset) * count))


@pytest.mark.parametrize("name", ["gpt2", "bert", "applied_twice", "conv1d"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_batches_and_padding_do_not_move_the_factors(tmp_path, monkeypatch, name, sharing):
    options = {"name": name, "config": FitConfig(sharing=sharing, labels="sampled"), "count": 9}
    alone = factor_file(tmp_path, "alone", max_positions=1, **options)
    monkeypatch.setattr("whence.curvature.moments._BLOCK", 3)
    together = factor_file(tmp_path, "together", max_positions=1000, **options)
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        close(together[key], value)


def test_batches_do_not_move_the_eigenvalues():
    found = [fitted("linear", FitConfig(labels="sampled"), count=20, max_positions=size)[3] for size in (1, 7, 1000)]
    for other in found[1:]:
        for block, known in zip(other.blocks, found[0].blocks, strict=True):
            close(block.values_OI, known.values_OI, 1e-8)


def test_a_batch_that_did_not_fit_is_not_counted_twice(monkeypatch):
    known = fitted("applied_twice", count=9)[3]

    def sometimes(*args, num_examples, **kwargs):
        result = capture(*args, num_examples=num_examples, **kwargs)
        if num_examples > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return result

    for module in ("kfac", "ekfac"):
        monkeypatch.setattr(f"whence.curvature.{module}.capture", sometimes)
    for block, wanted in zip(fitted("applied_twice", count=9)[3].blocks, known.blocks, strict=True):
        close(block.values_OI, wanted.values_OI, 1e-8)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_ids_that_are_looked_up_are_counted(tmp_path, sharing):
    """The diagonal of the second moment of one-hot vectors, or of their sums over an example, is all there is of it here."""
    _, plan, dataset, found = fitted("llama", FitConfig(sharing=sharing), folder=tmp_path, max_positions=20)
    index = next(place for place, unit in enumerate(plan.units) if "embed" in unit.name)
    counts = torch.stack(
        [torch.bincount(torch.as_tensor(e.fields["input_ids"]).long(), minlength=30) for e in dataset.examples]
    )
    assert int(counts.max()) > 1
    wanted = counts.sum(0) if sharing == "expand" else counts.square().sum(0)
    close(read_tensors(tmp_path / "factors.safetensors")[f"outputs.{index}.lookup"], wanted.double())
    assert found.blocks[index].outputs_OO is None


def test_kfac_of_a_tied_embedding_is_the_diagonal_of_the_sum_of_its_two_products(tmp_path):
    _, plan, dataset, found = fitted("gpt2", fit=fit_kfac, count=12, folder=tmp_path)
    index = next(place for place, unit in enumerate(plan.units) if len(unit.layers) == 2)
    factors, block = read_tensors(tmp_path / "factors.safetensors"), found.blocks[index]
    total, partial = torch.zeros(30 * 8, 30 * 8).double(), torch.zeros(30, 30).double()
    for role in ("product", "lookup"):
        left, right = factors[f"outputs.{index}.{role}"], factors[f"inputs.{index}.{role}"]
        left = torch.diag(left) if left.ndim == 1 else left
        scale = 1.0 / (len(dataset) * float(factors[f"count.{index}.{role}"]))
        total += scale * torch.kron(left, right)
        partial += scale * float(right.trace()) * left
    assert block.outputs_OO is not None and block.inputs_II is not None
    basis = torch.kron(block.outputs_OO, block.inputs_II)
    close(block.values_OI.flatten(), (basis.T @ total @ basis).diag())
    inside = block.outputs_OO.T @ partial @ block.outputs_OO
    assert float((inside - torch.diag(inside.diag())).abs().max()) < 1e-12 * float(partial.trace())


def test_uncorrected_is_kfac():
    corrected, plain = fitted("conv2d")[3], fitted("conv2d", fit=fit_kfac)[3]
    for block, wanted in zip(corrected.uncorrected().blocks, plain.blocks, strict=True):
        close(block.values_OI, wanted.values_OI)
    means = [[block.mean_eigenvalue for block in one.blocks] for one in (plain, corrected)]
    assert means[0] != pytest.approx(means[1])


def test_draws_average_to_the_exact_expectation():
    exact = fitted("linear")[3]
    drawn = fitted("linear", FitConfig(samples=400, seed=3))[3]
    assert drawn.trace() == pytest.approx(exact.trace(), rel=0.1)
    assert fitted("linear", FitConfig(samples=1))[3].trace() != pytest.approx(exact.trace(), rel=0.02)


def test_seeds():
    first, again, other = (fitted("gpt2", FitConfig(seed=seed), max_positions=30)[3] for seed in (1, 1, 2))
    assert all(torch.equal(a.values_OI, b.values_OI) for a, b in zip(first.blocks, again.blocks, strict=True))
    assert not torch.equal(first.blocks[0].values_OI, other.blocks[0].values_OI)


def test_every_example_stage_and_draw_has_draws_of_its_own():
    from whence.curvature.labels import _seed

    keys = [(seed, stage, number, name) for seed in (0, 1) for stage in "ab" for number in (0, 1) for name in ("x", "y")]
    assert len({_seed(*key) for key in keys}) == 16


def test_the_datasets_labels_give_the_empirical_fisher():
    task, plan, dataset, found = fitted("gpt2", FitConfig(labels="dataset"), max_positions=30)
    gradients = objective_gradients(task, plan, dataset.examples, lambda model, batch, _: task.loss(model, batch))
    assert found.trace() == pytest.approx(sum(float(fisher(g).trace()) for g in gradients))
    assert "empirical Fisher" in found.note


def custom(outputs=None):
    torch.manual_seed(0)
    records = [(torch.randn(3).double(), torch.randn(2).double()) for _ in range(6)]

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(1)

    task = whence.Custom(nn.Linear(3, 2).double(), loss, outputs=outputs)
    return task, plan_units(task), task.prepare(records)


def test_a_task_without_a_likelihood_has_an_empirical_fisher_only():
    task, plan, dataset = custom()
    assert fit_ekfac(task, plan, dataset, FitConfig(labels="dataset"), quiet=True).trace() > 0
    with pytest.raises(Unsupported, match="a Custom task whose likelihood is not known"):
        fit_ekfac(task, plan, dataset, quiet=True)


def test_outputs_that_are_not_those_of_the_loss_are_refused():
    def doubled(model, batch):
        return Outputs(2 * model(batch[0]), torch.arange(len(batch[0])), batch[1], "gaussian")

    task, plan, dataset = custom(doubled)
    with pytest.raises(BadInput, match=r"outputs whose likelihood gives example '\d' a loss of .*needed the same loss"):
        fit_ekfac(task, plan, dataset, quiet=True)
    with pytest.raises(BadInput, match=r"gives example '\d' a loss"):
        check_outputs(task, dataset.examples)


def test_which_labels_are_taken():
    task, dataset = zoo.make("linear")
    assert str(choose_labels(task, dataset.examples, "auto", samples=None, seed=0)) == "all labels, weighted"
    assert str(choose_labels(task, dataset.examples, "auto", samples=3, seed=5)) == "3 sampled labels (seed 5)"
    many = whence.Classification(nn.Linear(2, 33).double())
    rows = many.prepare([(torch.randn(2).double(), 0)])
    assert str(choose_labels(many, rows.examples, "auto", samples=None, seed=0)) == "1 sampled label (seed 0)"
    assert choose_labels(many, rows.examples, "exact", samples=None, seed=0).passes == 33
    language, texts = zoo.make("gpt2")
    assert choose_labels(language, texts.examples, "auto", samples=None, seed=0).kind == "sampled"
    with pytest.raises(Unsupported, match=r"an example with \d+ rows of outputs.*do this: pass FitConfig\(labels='sampled'\)"):
        choose_labels(language, texts.examples, "exact", samples=None, seed=0)
    for labels, samples in (("exact", 2), ("dataset", 1), ("sampled", 0)):
        with pytest.raises(BadInput, match=f"samples={samples} with labels='{labels}'; needed a positive number, and labels"):
            choose_labels(task, dataset.examples, labels, samples=samples, seed=0)


def test_an_example_of_several_rows_between_examples_of_one():
    """Neither the shortest nor the longest example shows it."""
    task, dataset = zoo.make("linear")
    inner, inner_loss = task.outputs, task.loss

    def loss(model, batch):
        return inner_loss(model, batch) * (1 if len(batch["target"]) == 1 else 2)

    def outputs(model, batch):
        found = inner(model, batch)
        if len(batch["target"]) == 1:
            return found
        twice = torch.cat([found.values_MC, found.values_MC])
        return Outputs(twice, torch.cat([found.owners_M, found.owners_M]), found.targets.repeat(2), "categorical")

    task.outputs, task.loss = outputs, loss
    assert choose_labels(task, dataset.examples, "auto", samples=None, seed=0).kind == "sampled"
    with pytest.raises(Unsupported, match="all of whose labels are to be taken"):
        fit_ekfac(task, plan_units(task), dataset, FitConfig(labels="exact"), max_positions=100, quiet=True)


def test_impossible_settings():
    with pytest.raises(UnknownOption, match="found labels='true'; needed one of: auto, exact, sampled, dataset"):
        FitConfig(labels="true")
    with pytest.raises(UnknownOption, match="found sharing='both'; needed one of: expand, reduce"):
        FitConfig(sharing="both")
    with pytest.raises(BadInput, match="found largest_side=0; needed 1 or more"):
        FitConfig(largest_side=0)
    with pytest.raises(BadInput, match="found directions=-1; needed 0 or more"):
        FitConfig(directions=-1)


def test_vectors_of_other_units_are_refused():
    found = fitted("linear")[3]
    with pytest.raises(BadInput, match=r"vectors of 1 units, the first of shape \(5, 7\); needed 2 units"):
        found.solve([torch.zeros(1, 5, 7)], DAMPING)


@pytest.mark.parametrize(("stage", "thing"), [("kfac", "factor"), ("ekfac", "squared gradient")])
@pytest.mark.parametrize("number", [0, 3, 5])
def test_the_example_that_is_not_finite_is_named_and_its_layer(monkeypatch, stage, thing, number):
    task, dataset = zoo.make("linear", count=6)
    marked = task.collate([dataset.examples[number]])["inputs"]["inputs"][0]

    def broken(task, plan, batch, consume, **kwargs):
        is_it_B = (batch[0]["inputs"]["inputs"] == marked).flatten(1).all(1)

        def spoil(index, pair):
            if plan.units[index].name == "body.0.weight":
                pair.outputs.values_BTN[is_it_B] = float("nan")
            consume(index, pair)

        return capture(task, plan, batch, spoil, **kwargs)

    monkeypatch.setattr(f"whence.curvature.{stage}.capture", broken)
    with pytest.raises(NonFinite, match=f"infinite {thing} of 'body.0.weight' for the example '{number}'"):
        fit_ekfac(task, plan_units(task), dataset, max_positions=100, quiet=True)


def test_a_sum_that_overflows_names_its_batch():
    """Every example's square fits into float32, that of all together does not."""
    task = whence.Custom(nn.Linear(1, 1, bias=False), lambda model, batch: 1e19 * model(batch)[:, 0])
    dataset = task.prepare([torch.ones(1)] * 4)
    for positions, whose in ((100, "4 examples of which '0' is one"), (2, "all 4 examples")):
        with pytest.raises(NonFinite, match=f"factor of 'weight' in the sum over {whose}"):
            fit_ekfac(task, plan_units(task), dataset, FitConfig(labels="dataset"), max_positions=positions, quiet=True)


def test_a_fit_goes_on_after_the_last_whole_stage(tmp_path, monkeypatch):
    known = fitted("linear")[3]
    passes = []

    def counted(stage, fails):
        def run(*args, **kwargs):
            passes.append(stage)
            if fails:
                raise KeyboardInterrupt
            return capture(*args, **kwargs)

        monkeypatch.setattr(f"whence.curvature.{stage}.capture", run)

    counted("kfac", False)
    counted("ekfac", True)
    with pytest.raises(KeyboardInterrupt):
        fitted("linear", folder=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["bases.safetensors", "factors.safetensors"]
    passes.clear()
    counted("ekfac", False)
    found = fitted("linear", folder=tmp_path)[3]
    assert set(passes) == {"ekfac"}
    passes.clear()
    again = fitted("linear", folder=tmp_path)[3]
    plain = fitted("linear", folder=tmp_path, fit=fit_kfac)[3]
    assert not passes
    for block, one, wanted in zip(found.blocks, again.blocks, known.blocks, strict=True):
        assert torch.equal(block.values_OI, wanted.values_OI) and torch.equal(one.values_OI, wanted.values_OI)
    for block, wanted in zip(plain.blocks, known.uncorrected().blocks, strict=True):
        close(block.values_OI, wanted.values_OI)


def test_a_fit_of_something_else_is_refused(tmp_path):
    task, plan, dataset, _ = fitted("linear", folder=tmp_path)
    with pytest.raises(
        StoreMismatch, match="a curvature fit with another seed in .*needed one of the same model, data and settings"
    ):
        fit_ekfac(task, plan, dataset, FitConfig(seed=1), folder=tmp_path, quiet=True)
    with pytest.raises(StoreMismatch, match="another dataset"):
        fitted("linear", folder=tmp_path, count=7)
    with torch.no_grad():
        next(task.model.parameters()).add_(1.0)
    with pytest.raises(StoreMismatch, match="another weights"):
        fit_ekfac(task, plan, dataset, folder=tmp_path, quiet=True)


def test_a_damaged_fit_is_refused(tmp_path):
    fitted("linear", folder=tmp_path)
    path = tmp_path / "values.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreCorrupt, match="its checksum is another.*do this: delete the folder and fit again"):
        fitted("linear", folder=tmp_path)
    path.unlink()
    with pytest.raises(StoreCorrupt, match="values.safetensors"):
        fitted("linear", folder=tmp_path)


@pytest.mark.parametrize("rank", [1, 5, 11, 12])
def test_rounding_does_not_choose_the_basis_of_the_null_space(rank):
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(rank, 12, generator=generator, dtype=torch.float64)
    noise = 1e-16 * torch.randn(2, 12, 12, generator=generator, dtype=torch.float64) * float((rows * rows).sum())
    first, second = (eigenvectors([rows.T @ rows + one + one.T], [1.0], torch.float64) for one in noise)
    torch.testing.assert_close(first.T @ first, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close((first.T @ second).abs(), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-10)
    inside = first.T @ (rows.T @ rows) @ first
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_a_long_tied_vocabulary_is_fitted_in_float32(fit, monkeypatch):
    """The lookup's moment is a diagonal, the head's a matrix that is left in its own type: a product of both failed."""
    task, dataset = zoo.make("gpt2", count=6)
    plan, labels = plan_units(task), FitConfig(labels="dataset")
    wanted = fit(task, plan, dataset, labels, max_positions=1000, quiet=True)
    monkeypatch.setattr(import_module("whence.curvature.eigenvectors"), "LONG_SIDE", 10)
    task.model.float()
    found = fit(task, plan, dataset, labels, max_positions=1000, quiet=True)
    for block, exact in zip(found.blocks, wanted.blocks, strict=True):
        assert float(block.values_OI.sum()) == pytest.approx(float(exact.values_OI.sum()), rel=1e-4)
        close(block.values_OI.double().flatten().sort()[0][-5:], exact.values_OI.flatten().sort()[0][-5:], 1e-3)

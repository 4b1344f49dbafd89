"""The Fisher of rows and damping."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference.influence import inverse_fisher
from tests.settings import QUIET
from whence.capture import capture, plan_units
from whence.curvature import choose_damping, fit_axes, leading_directions, recipe_damping, stored_damping
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.progress import meter
from whence.records import Recipe
from whence.settings import Damping
from whence.store import StoredUnit


def rows_with_decay(count=40, size=30, decay=1.6):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size).double())[0]
    return torch.randn(count, size).double() * decay ** -torch.arange(size).double() @ basis.T


def fit(rows, rank, block=7):
    return leading_directions(
        lambda: iter(rows.split(block)), rows.shape[1], rank=rank, seed=0, name="unit", num_rows=len(rows)
    )


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
def test_full_inverse_equals_the_dense_one(damping):
    rows, queries = rows_with_decay(), torch.randn(3, 30).double()
    fisher = fit(rows, None)
    dense = inverse_fisher(rows, damping, None)
    torch.testing.assert_close(fisher.solve(queries, damping), queries @ dense, rtol=1e-6, atol=1e-9)
    back = fisher.solve(queries, damping) @ (rows.T @ rows / len(rows)) + damping * fisher.solve(queries, damping)
    torch.testing.assert_close(back, queries, rtol=1e-6, atol=1e-8)
    assert fisher.trace == pytest.approx(float(rows.square().sum()) / len(rows))


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_truncated_inverse_equals_the_naive_formula(rank):
    rows, queries = rows_with_decay(), torch.randn(3, 30).double()
    fisher = fit(rows, rank)
    assert fisher.vectors_DK.shape == (30, rank)
    wanted = queries @ inverse_fisher(rows, 1e-2, rank)
    torch.testing.assert_close(fisher.solve(queries, 1e-2), wanted, rtol=1e-3, atol=1e-3)
    assert fisher.trace == pytest.approx(float(rows.square().sum()) / len(rows))


def test_block_size_is_invisible():
    rows, queries = rows_with_decay(), torch.randn(3, 30).double()
    found = [fit(rows, 4, block).solve(queries, 1e-2) for block in (1, 40)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_directions_outside_are_kept_with_the_weight_of_the_damping():
    rows = torch.zeros(20, 30).double()
    rows[:, 0] = 1.0
    fisher = fit(rows, 1)
    probe = torch.eye(30).double()[[0, 5]]
    found = fisher.solve(probe, 0.1)
    torch.testing.assert_close(found.diagonal()[:1], torch.tensor([1 / 1.1]).double())
    torch.testing.assert_close(found[1, 5], torch.tensor(10.0).double())


def test_fewer_rows_than_directions():
    rows, queries = rows_with_decay(count=5), torch.randn(3, 30).double()
    fisher = fit(rows, 12)
    assert fisher.vectors_DK.shape == (30, 5)
    torch.testing.assert_close(fisher.solve(queries, 1e-2), queries @ inverse_fisher(rows, 1e-2, None), rtol=1e-6, atol=1e-6)


def test_recipe_of_momentum_sgd():
    recipe = Recipe("sgd", learning_rate_sum=25.0, momentum=0.9, weight_decay=1e-3)
    assert recipe_damping(recipe) == pytest.approx(1e-3 + 1 / 250)


def test_recipe_of_a_loss_that_was_a_mean_over_tokens():
    """Dividing the loss by T divides its curvature by T, so the same damping is T times as much in summed units."""
    recipe = Recipe("sgd", learning_rate_sum=25.0, loss_divisor=64.0)
    assert recipe_damping(recipe) == pytest.approx(64 / 25)


def test_rules_of_a_store_are_named():
    options = {"default": 0.3}
    recipe = Recipe("sgd", 10.0)
    chosen = stored_damping(recipe, Damping(), **options)
    assert (chosen.relative, chosen.label) == (0.3, "default damping") and "the method's default" in chosen.note
    assert stored_damping(recipe, Damping(relative=2.0), **options).label == "damping 2 x mean"
    found = {
        rule: stored_damping(recipe, Damping(rule=rule), **options)
        for rule in ("mean", "lorif", "lorif-paper", "lorif-tail", "recipe")
    }
    assert [found[rule].relative for rule in found] == [0.1, 0.5, 0.1, 0.5, None]
    assert [found[rule].of_kept for rule in found] == [False, False, True, False, False]
    assert [found[rule].has_tail for rule in found] == [False, False, False, True, False]
    assert [found[rule].label for rule in found] == [f"{rule} damping" for rule in found]
    assert found["recipe"].absolute == pytest.approx(0.1)
    with pytest.raises(
        BadInput, match=r"found Damping\(rule='recipe'\) without a known training run; needed a recipe that tells"
    ):
        stored_damping(None, Damping(rule="recipe"), **options)
    with pytest.raises(BadInput, match=r"found Damping\(rule='recipe'\) for adamw without its second moments"):
        stored_damping(Recipe("adamw", 1.0), Damping(rule="recipe"), **options)
    with pytest.raises(BadInput, match=r"found Damping\(relative=2.0, absolute=None, rule='mean'\); needed at most one"):
        Damping(relative=2.0, rule="mean")
    with pytest.raises(
        UnknownOption, match=r"found Damping\(rule='median'\); needed one of: mean, lorif, lorif-paper, lorif-tail, recipe"
    ):
        Damping(rule="median")


def unit(name="w", outputs=3, gain=1.0, parameters=None):
    return StoredUnit(name, parameters or (name,), outputs, 4, (3, 4), gain)


def test_recipe_of_adam():
    """Each layer's learning rate is divided by its sqrt(v) + eps, so its damping is multiplied by it."""
    recipe = Recipe("adamw", 2.0, weight_decay=0.5, loss_divisor=3.0, inverse_preconditioner={"w": 0.02, "a": 0.1, "b": 0.3})
    damping = choose_damping(recipe, Damping(), default=0.1)
    assert damping.of_unit(unit(gain=2.0), mean_eigenvalue=7.0) == pytest.approx(3 * (0.5 + 0.5) * 0.02 * 2)
    assert damping.of_unit(unit(parameters=("a", "b")), 7.0) == pytest.approx(3 * 0.1)
    assert damping.of_unit(unit(outputs=1, parameters=("a", "b")), 7.0) == pytest.approx(3 * 0.2)
    assert "times each layer's mean sqrt(v) + eps of adamw" in damping.note


def test_weight_decay_that_is_a_part_of_the_gradient_is_not_divided_by_the_root_of_its_square():
    """P (H + wd) moves to where (H + wd) does, whatever P is; P H + wd = P (H + wd / P) does not."""
    known = {"weight_decay": 0.5, "loss_divisor": 3.0, "inverse_preconditioner": {"w": 0.02}}
    adam = choose_damping(Recipe("adam", 2.0, **known), whence.Damping(), default=0.1)
    assert adam.of_unit(unit(gain=2.0), 7.0) == pytest.approx(3 * (0.5 + 0.5 * 0.02) * 2)
    assert "weight decay, a part of the gradient" in adam.note
    for name, is_decoupled, factor in (
        ("AdamW", None, 0.02),
        ("Adam", True, 0.02),
        ("AdamW", False, 1.0),
        ("mine", False, 1.0),
    ):
        found = choose_damping(Recipe(name, 2.0, decoupled_weight_decay=is_decoupled, **known), whence.Damping(), default=0.1)
        assert found.of_unit(unit(), 7.0) == pytest.approx(3 * (0.5 * factor + 0.5 * 0.02)), name
    with pytest.raises(
        BadInput, match="a recipe of mine with weight_decay=0.5; needed whether weight decay is a part of the gradient"
    ):
        choose_damping(Recipe("mine", 2.0, **known), whence.Damping(), default=0.1)


def test_scores_after_adam_with_weight_decay_are_those_of_the_closed_form(tmp_path):
    """What converged minimises the mean loss plus half of the decayed square: nothing of Adam is in how that moves."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(24, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    inputs = inputs * torch.tensor([1.0, 0.5, 0.2, 2.0])
    model, decay = torch.nn.Linear(4, 1, bias=False).double(), 0.1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=decay)
    steps = 1500
    with whence.Recorder(tmp_path, model, optimizer, every=steps) as run:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
            run.batch(range(24))
            optimizer.zero_grad()
            (0.5 * (model(inputs) - targets).square()).mean().backward()
            optimizer.step()
    recipe = whence.runs.open_run(tmp_path).recipe()
    assert recipe.decoupled_weight_decay is False
    task = whence.Regression(model, recipe=recipe)
    records = list(zip(inputs, targets, strict=True))
    found = whence.attribute(
        task, records, records[:3], method=whence.settings.CG(tolerance=1e-9, iterations=50), runtime=QUIET
    )
    hessian = inputs.T @ inputs / 24 + decay * torch.eye(4)
    residuals = inputs @ model.weight.detach().T - targets
    gradients = residuals * inputs
    expected = gradients[:3] @ torch.linalg.solve(hessian, gradients.T) / 24
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


def test_what_is_no_state_of_adam_is_refused():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    assert whence.curvature.inverse_preconditioner(model, optimizer) == {}
    for parameter in model.parameters():
        optimizer.state[parameter] = {"state1": torch.zeros(2), "state2": torch.zeros(2), "step": 3}
    with pytest.raises(Unsupported, match="a AdamW whose state is state1, state2, step; needed exp_avg_sq and step"):
        whence.curvature.inverse_preconditioner(model, optimizer)


def test_impossible_recipes():
    for recipe in (Recipe("sgd", 0.0), Recipe("sgd", 1.0, momentum=1.0), Recipe("sgd", 1.0, loss_divisor=0.0)):
        with pytest.raises(BadInput, match="needed a positive sum and divisor, and momentum in"):
            recipe_damping(recipe)


def test_choice_of_damping_is_told():
    no_recipe = "damping 0.1 x mean eigenvalue, the method's default: no training recipe known"
    assert choose_damping(None, Damping(), default=0.1).note == no_recipe
    auto = choose_damping(Recipe("sgd", 10.0), Damping(), default=0.1)
    assert auto.of_unit(unit(gain=2.0), 5.0) == pytest.approx(0.2) and "from the training recipe" in auto.note
    assert "not its second moments" in choose_damping(Recipe("adamw", 10.0), Damping(), default=0.1).note
    asked = choose_damping(Recipe("sgd", 10.0), Damping(relative=0.5), default=0.1)
    assert asked.of_unit(unit(gain=2.0), 5.0) == pytest.approx(2.5) and "as asked" in asked.note
    assert choose_damping(None, Damping(absolute=0.5), default=0.1).of_unit(unit(), 5.0) == 0.5
    for wrong in ({"relative": 0.0}, {"relative": 1.0, "absolute": 1.0}, {"absolute": -1.0}):
        with pytest.raises(BadInput, match="needed at most one of them, and positive"):
            Damping(**wrong)


@pytest.mark.parametrize("fails_above", [99, 2])
def test_axes_are_the_eigenvectors_of_all_real_positions(monkeypatch, fails_above):
    """Also when a batch does not fit and is done again in halves: nothing is counted twice."""
    task, dataset = zoo.make("gpt2", count=6)
    plan = plan_units(task)
    index = next(i for i, unit in enumerate(plan.units) if unit.name.endswith("h.0.mlp.c_fc.weight"))
    moments = {"inputs": torch.zeros(9, 9).double(), "outputs": torch.zeros(32, 32).double()}
    for example in dataset.examples:

        def consume(place, pair):
            if place == index:
                for side, moment in moments.items():
                    rows = getattr(pair, side).dense()[0]
                    moment += rows.T @ rows

        capture(task, plan, task.collate([example]), consume, num_examples=1)

    def sometimes(*args, num_examples, **kwargs):
        result = capture(*args, num_examples=num_examples, **kwargs)
        if num_examples > fails_above:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return result

    monkeypatch.setattr("whence.curvature.axes.capture", sometimes)
    with meter("", 6, quiet=True) as progress:
        axes = fit_axes(task, plan, dataset.examples, rank=3, seed=0, max_positions=1000, progress=progress)
    for side, moment in moments.items():
        found = axes[f"{side}.{index}"].double()
        wanted = torch.linalg.eigh(moment)[0].flip(0)[:3]
        torch.testing.assert_close((found.T @ moment @ found).diagonal(), wanted, rtol=1e-3, atol=1e-6 * float(wanted[0]))

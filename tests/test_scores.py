"""Scores equal the formulas as written, and predict retraining in sign and unit."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

import whence
from tests import zoo
from tests.reference.influence import inverse_fisher, projected_rows, scores, truncated
from tests.settings import QUIET
from whence.capture import plan_units
from whence.data import Dataset
from whence.errors import BadInput, NonFinite
from whence.methods import METHODS
from whence.pipeline.stored.encoders import stored_encoder
from whence.progress import meter
from whence.score import top_scores


def built(tmp_path, task, dataset, **options):
    return whence.build(task, dataset, tmp_path / "store", config=whence.BuildConfig(dtype="float64", **options), runtime=QUIET)


def split(task, dataset, queries):
    examples = list(dataset.examples)
    return Dataset(examples[queries:]), Dataset(examples[:queries])


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "lone_parameter"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("logra", {"rank": 3}),
        ("logra", {"rank": 1000}),
        ("logra-pca", {"rank": 3}),
        ("lorif", {"rank": 5, "factor_rank": 1, "curvature_rank": 3}),
        ("lorif", {"rank": 5, "factor_rank": 2, "curvature_rank": 100}),
        ("grad-dot", {"rank": 3}),
        ("logra", {"side_divisor": 3}),
        ("lorif", {"side_divisor": 2, "factor_rank": 1, "curvature_rank": 100}),
    ],
)
def test_scores_equal_the_naive_formula(tmp_path, name, method, options):
    task, dataset = zoo.make(name, count=14)
    train, queries = split(task, dataset, 3)
    store = built(tmp_path, task, train, method=method, rows_per_shard=4, batch_positions=40, **options)
    damping = whence.Damping(relative=None if method == "grad-dot" else 0.2)
    table = whence.score_table(store, task, queries, damping=damping, runtime=QUIET)

    plan = plan_units(task)
    kronecker = stored_encoder(store, plan, task)
    rows = projected_rows(task, plan, kronecker, train.examples)
    if method == "lorif":
        # How good the factors are is tested on its own (test_compress); the scores are those of the rows as they are stored.
        held = [tensors for _, tensors in store.shards()]
        kept = [torch.cat([store.codec.decode(shard, index) for shard in held]) for index in range(len(rows))]
        for row, shape, stored in zip(rows, kronecker.shapes(), kept, strict=True):
            least = (truncated(row, shape, store.blueprint.factor_rank) - row).norm()
            assert least - 1e-9 <= (stored - row).norm() <= 1.2 * least + 1e-9
        rows = kept
    asked = projected_rows(task, plan, kronecker, queries.examples, "measurement")
    inverses = []
    for row in rows:
        damping = max(0.2 * float(row.square().sum()) / row.numel(), 1e-30)
        identity = METHODS[method].curvature == "identity"
        inverses.append(
            torch.eye(row.shape[1]).double() if identity else inverse_fisher(row, damping, store.blueprint.curvature_rank)
        )
    wanted = scores(rows, asked, inverses)
    # A truncated curvature comes from three power iterations; all else is rounding.
    exact = options.get("curvature_rank", 100) >= 100
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if exact else {"rtol": 0.05, "atol": 0.02 * wanted.abs().max().item()}
    torch.testing.assert_close(table.scores, wanted, **tolerance)
    assert table.train_ids == tuple(example.id for example in train.examples)


@pytest.mark.parametrize("rank", [3, 1000])
def test_damping_rules_are_the_published_ones(tmp_path, rank):
    """LoRIF's code takes half of trace / D, its paper a tenth of the mean of the leading eigenvalues, both of G^T G."""
    task, dataset = zoo.make("linear", count=14)
    train, queries = split(task, dataset, 3)
    store = built(tmp_path, task, train, method="lorif", rank=5, factor_rank=1, curvature_rank=rank)
    held = [tensors for _, tensors in store.shards()]
    rows = [torch.cat([store.codec.decode(shard, index) for shard in held]) for index in range(len(store.blueprint.units))]
    plan = plan_units(task)
    asked = projected_rows(task, plan, stored_encoder(store, plan, task), queries.examples, "measurement")
    for rule in ("mean", "lorif", "lorif-paper", "lorif-tail"):
        inverses = []
        for row in rows:
            values = torch.linalg.eigvalsh(row.T @ row).flip(0) / len(row)
            kept = values[: min(rank, len(row), len(values))]
            half = 0.5 * values.mean()
            damping = {"mean": 0.1 * values.mean(), "lorif": half, "lorif-paper": 0.1 * kept.mean(), "lorif-tail": half}[rule]
            inverses.append(inverse_fisher(row, float(damping), rank, has_tail=rule == "lorif-tail"))
        table = whence.score_table(store, task, queries, damping=whence.Damping(rule=rule), runtime=QUIET)
        wanted = scores(rows, asked, inverses)
        tolerance = {"rtol": 1e-7, "atol": 1e-9} if rank > 100 else {"rtol": 0.05, "atol": 0.02 * wanted.abs().max().item()}
        torch.testing.assert_close(table.scores, wanted, **tolerance)
        assert table.method.endswith(f"{rule} damping")


def test_lorif_with_everything_kept_is_logra(tmp_path):
    task, dataset = zoo.make("gpt2", count=12)
    train, queries = split(task, dataset, 2)
    one = built(tmp_path / "a", task, train, method="lorif", rank=4, factor_rank=4, curvature_rank=1000)
    other = built(tmp_path / "b", task, train, method="logra", rank=4)
    tables = [
        whence.score_table(store, task, queries, damping=whence.Damping(relative=0.1), runtime=QUIET).scores
        for store in (one, other)
    ]
    torch.testing.assert_close(*tables, rtol=1e-9, atol=1e-12)


def test_cosine(tmp_path):
    task, dataset = zoo.make("linear", count=9)
    store = built(tmp_path, task, dataset, method="grad-cos", rank=1000)
    table = whence.score_table(store, task, dataset, runtime=QUIET)
    plan = plan_units(task)
    rows = torch.cat(projected_rows(task, plan, stored_encoder(store, plan, task), dataset.examples), 1)
    unit = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(table.scores, unit @ unit.T)
    assert table.unit == "cosine"


def test_top_hits_are_the_sorted_table(tmp_path):
    task, dataset = zoo.make("gpt2", count=12)
    dataset = Dataset([*dataset.examples, *(type(e)(f"copy of {e.id}", e.fields, e.length) for e in dataset.examples[:6])])
    store = built(tmp_path, task, dataset, method="logra", rank=3, rows_per_shard=4)
    queries = Dataset(dataset.examples[:3])
    table = whence.score_table(store, task, queries, runtime=QUIET)
    hits = whence.query(store, task, queries, k=5, runtime=QUIET)
    for place in range(3):
        values = table.scores[place].tolist()
        by_score = sorted(range(18), key=lambda row: (-values[row], row))
        wanted = {
            1: [row for row in by_score if values[row] > 0][:5],
            -1: [row for row in reversed(by_score) if values[row] < 0][:5],
        }
        for sign, side in ((1, hits.proponents[place]), (-1, hits.opponents[place])):
            assert [hit.score for hit in side] == pytest.approx([values[row] for row in wanted[sign]], rel=1e-9)
            for hit in side:
                assert hit.score == pytest.approx(values[hit.row], rel=1e-9) and hit.id == table.train_ids[hit.row]
    everything = whence.query(store, task, queries, k=100, runtime=QUIET)
    for up, down in zip(everything.proponents, everything.opponents, strict=True):
        # Both sides together are all examples, none of them twice.
        assert sorted(hit.row for hit in up + down) == list(range(18))
    with pytest.raises(BadInput, match="found k=0"):
        whence.query(store, task, queries, k=0)


def test_equal_scores_come_in_row_order():
    from whence.score.scan import Top, _merged_top

    top = Top(torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.long))
    for start, values in ((0, [1.0, 2.0, 2.0]), (3, [2.0, 1.0]), (5, [2.0])):
        top = _merged_top(top, torch.tensor([values]), start, 4, largest=True)
    assert top.rows_QK.tolist() == [[1, 2, 3, 5]] and top.scores_QK.tolist() == [[2.0] * 4]


@pytest.mark.parametrize("name", ["gpt2", "linear", "layer_norm"])
def test_token_scores_add_up(tmp_path, name):
    from whence.pipeline.stored.prepared import PreparedQuery
    from whence.score import token_scores

    task, dataset = zoo.make(name, count=8)
    store = built(tmp_path, task, dataset, method="logra", rank=3)
    asked = PreparedQuery.prepare(store, task, Dataset(dataset.examples[:1]), whence.Damping(relative=0.1), True)
    table = whence.score_table(store, task, Dataset(dataset.examples[:1]), damping=whence.Damping(relative=0.1), runtime=QUIET)
    for row, example in enumerate(dataset.examples):
        parts = token_scores(task, asked.plan, asked.encoder, example, [unit[0] for unit in asked.preconditioned])
        assert parts.shape == (example.length,)
        assert float(parts.sum()) == pytest.approx(float(table.scores[0, row]), rel=1e-8, abs=1e-12)


def test_least_squares_matches_closed_form_leave_one_out(tmp_path):
    """Where every residual is +-1 the Fisher of the rows is the Hessian, so the score is leave-one-out without its leverage.

    Removing example i moves the solution by -(X^T X)^-1 x_i r_i / (1 - h_i), where r_i = x_i w - y_i.
    """
    torch.manual_seed(0)
    half = torch.randn(40, 5).double()
    inputs = torch.cat([half, half])
    residuals = torch.cat([torch.ones(40), -torch.ones(40)]).double()  # orthogonal to the columns of the inputs
    weights = torch.randn(5).double()
    targets = inputs @ weights - residuals
    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(inputs, targets[:, None]).solution.T
    task = whence.Regression(model)
    store = built(tmp_path, task, list(zip(inputs, targets, strict=True)), method="logra", rank=1000)
    query_inputs, query_targets = torch.randn(4, 5).double(), torch.randn(4).double()
    table = whence.score_table(
        store, task, list(zip(query_inputs, query_targets, strict=True)), damping=whence.Damping(absolute=1e-12), runtime=QUIET
    )

    inverse = torch.linalg.inv(inputs.T @ inputs)
    leverage = ((inputs @ inverse) * inputs).sum(1)
    error = query_inputs @ weights - query_targets
    for row in range(80):
        keep = torch.arange(80) != row
        without = torch.linalg.lstsq(inputs[keep], targets[keep, None]).solution[:, 0]
        moved = without - weights
        torch.testing.assert_close(moved, inverse @ inputs[row] * residuals[row] / (1 - leverage[row]), rtol=1e-8, atol=1e-10)
        first_order = -error * (query_inputs @ moved) * (1 - leverage[row])  # of minus half the squared error
        torch.testing.assert_close(table.removal_effect()[:, row], first_order, rtol=1e-7, atol=1e-10)


def test_softmax_regression_predicts_leave_one_out(tmp_path):
    """With labels drawn from the model itself the Fisher of the rows estimates the Hessian: sign and unit agree with retraining."""
    torch.manual_seed(0)
    inputs = torch.randn(1500, 4).double()
    labels = torch.distributions.Categorical(logits=inputs @ torch.randn(4, 3).double()).sample()
    query_inputs, query_labels = torch.randn(6, 4).double(), torch.randint(3, (6,))
    decay = 1e-2

    def fit(keep, start):
        weights = start.clone()
        for _ in range(20):  # Newton, on the sum over the kept examples

            def objective(flat):
                logits = inputs[keep] @ flat.view(3, 4).T
                return nn.functional.cross_entropy(logits, labels[keep], reduction="sum") + 0.5 * decay * flat.square().sum()

            gradient = torch.func.grad(objective)(weights)
            weights = weights - torch.linalg.solve(torch.func.hessian(objective)(weights), gradient)
        return weights

    def measured(weights):
        return -nn.functional.cross_entropy(query_inputs @ weights.view(3, 4).T, query_labels, reduction="none")

    everything = torch.ones(1500, dtype=torch.bool)
    best = fit(everything, torch.zeros(12).double())
    model = nn.Linear(4, 3, bias=False).double()
    model.weight.data = best.view(3, 4)
    task = whence.Classification(model)
    store = built(tmp_path, task, list(zip(inputs, labels.tolist(), strict=True)), method="logra", rank=1000)
    queries = list(zip(query_inputs, query_labels.tolist(), strict=True))
    predicted = whence.score_table(
        store, task, queries, damping=whence.Damping(absolute=decay / 1500), runtime=QUIET
    ).removal_effect()

    chosen = range(0, 1500, 25)
    actual = []
    for row in chosen:
        keep = everything.clone()
        keep[row] = False
        actual.append(measured(fit(keep, best)) - measured(best))
    actual, predicted = torch.stack(actual, 1), predicted[:, ::25]
    slope = float((actual * predicted).sum() / predicted.square().sum())
    assert 0.85 < slope < 1.15
    for place in range(6):
        assert spearmanr(actual[place], predicted[place]).statistic > 0.9


def test_token_scores_of_a_completion_leave_the_prompt_out(tmp_path, model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder).double()
    task = whence.CausalLM(model, AutoTokenizer.from_pretrained(model_folder))
    records = [{"prompt": "ab", "completion": f" c{letter}"} for letter in "defghi"]
    store = built(tmp_path, task, records, method="logra", rank=1000)
    hits = whence.query(store, task, records[:1], k=6, tokens=True, damping=whence.Damping(relative=0.1), runtime=QUIET)
    for hit in hits.proponents[0]:
        assert sum(hit.token_scores) == pytest.approx(hit.score, rel=1e-6)


@pytest.mark.parametrize("rank", [4, 16])
def test_token_scores_of_factored_rows_are_those_of_the_rows(tmp_path, model_folder, rank):
    """The row that is stored, not the gradient it was cut from, is what the score comes from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder).double()
    task = whence.CausalLM(model, AutoTokenizer.from_pretrained(model_folder))
    records = [f"{letter} text of {letter}" for letter in "abcdefgh"]
    store = built(tmp_path, task, records, method="lorif", rank=rank, factor_rank=1)
    assert any(rank is not None for rank in store.codec.ranks)
    hits = whence.query(store, task, records[:2], k=8, tokens=True, runtime=QUIET)
    for hit in (hit for side in hits.proponents + hits.opponents for hit in side):
        assert sum(hit.token_scores) == pytest.approx(hit.score, rel=1e-6)


def test_pca_with_nothing_to_learn(tmp_path):
    task, dataset = zoo.make("linear", count=6)
    store = built(tmp_path, task, dataset, method="logra-pca", rank=100)
    assert whence.score_table(store, task, dataset, runtime=QUIET).scores.shape == (6, 6)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 12), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), levels=st.integers(1, 30),
    queries=st.integers(1, 3), joined=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_strongest_of_all_shards_are_those_of_one_sort(k, sizes, levels, queries, joined, seed):
    """Few levels make many equal scores: those come in row order, and the first of them are taken."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, (queries, sum(sizes)), generator=generator).double()
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    shards = [(start, {"scores": part}) for start, part in zip(starts, scores.split(sizes, 1), strict=True)]
    store = SimpleNamespace(
        codec=SimpleNamespace(scorer=lambda queries: lambda tensors: tensors["scores"]), shards=lambda ranks: iter(shards)
    )
    with pytest.MonkeyPatch.context() as patch, meter("", sum(sizes), quiet=True) as progress:
        patch.setattr("whence.score.scan._JOINED_SCORES", joined)
        high, low = top_scores(store, [torch.zeros(queries, 1, 1).double()], k, norms_Q=None, progress=progress)
    for top, sign in ((high, -1), (low, 1)):
        for query in range(queries):
            wanted = sorted((sign * score, row) for row, score in enumerate(scores[query].tolist()))[:k]
            found = list(zip((sign * top.scores_QK[query]).tolist(), top.rows_QK[query].tolist(), strict=True))
            assert found == wanted


class Attending(nn.Module):
    """Attention whose key has a bias that softmax does not see: its gradient is zero but for rounding."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        weights = (self.query(inputs) @ self.key(inputs).mT).softmax(-1)
        return self.head(torch.tanh(weights @ self.value(inputs))).mean(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["logra", "aligned", "trackstar", "ekfac"])
def test_a_gradient_of_nothing_but_rounding_is_not_blown_up(tmp_path, method, dtype):
    torch.manual_seed(0)
    model = Attending().to(dtype)
    records = [(torch.randn(5, 6, dtype=dtype), number % 3) for number in range(12)]

    def scores(**options):
        task = whence.Classification(model, track=["*.bias"], **options)
        if method == "ekfac":
            return whence.attribute(task, records, records[:3], method=method, runtime=QUIET).scores.double()
        store = whence.build(
            task,
            records,
            tmp_path / f"{len(options)}",
            config=whence.BuildConfig(method=method, dtype="float32"),
            runtime=QUIET,
        )
        return whence.score_table(store, task, records[:3], runtime=QUIET).scores.double()

    found, wanted = scores(), scores(ignore=["key.bias"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * wanted.abs().max().item())


def test_a_score_that_is_not_finite_names_its_example(tmp_path):
    from whence.pipeline.stored.prepared import PreparedQuery
    from whence.progress import meter
    from whence.score import all_scores, row_scores

    task, dataset = zoo.make("linear", count=8)
    store = built(tmp_path, task, dataset, method="logra", rank=3, rows_per_shard=3)
    asked = PreparedQuery.prepare(store, task, Dataset(dataset.examples[:2]), whence.Damping(), True)
    bad = [torch.stack([unit[0], torch.full_like(unit[1], torch.nan)]) for unit in asked.preconditioned]
    first = store.example(0)["id"]
    with (
        meter("scan", 8, quiet=True) as progress,
        pytest.raises(NonFinite, match=f"query 1 for the example {first!r} that is NaN"),
    ):
        all_scores(store, bad, norms_Q=None, progress=progress)
    with pytest.raises(NonFinite, match=f"for the example {store.example(5)['id']!r} that is NaN"):
        row_scores(store, bad, [5, 7], norms_Q=None)

"""Clusters and near-duplicates: planted groups come back, and each step is that of a loop."""

import json
import math
from collections import Counter

import pytest
import torch

import whence
from tests.reference.selecting import leaders, lloyd
from tests.settings import QUIET
from whence.clusters.directions import directions, principal
from whence.clusters.spherical_kmeans import refine, spherical_kmeans
from whence.clusters.words import distinctive_words, words_of
from whence.errors import BadInput
from whence.select.duplicates import _leaders
from whence.store import open_store

TOPICS = {"cooking": "boil the rice", "sailing": "hoist the sail", "chess": "move the rook"}


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def records(count=30, seed=0):
    """Three topics, each with inputs of its own: what one teaches the linear layer leaves the others alone."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        topic = number % 3
        inputs = 0.05 * torch.randn(9, generator=generator)
        inputs[3 * topic : 3 * topic + 3] += torch.tensor([1.0, 0.7, -0.4])
        name, text = list(TOPICS.items())[topic]
        made.append({"id": f"t{number}", "inputs": inputs, "label": 0, "text": f"{text} {number}", "source": name})
    return made


def task():
    torch.manual_seed(0)
    return whence.Classification(torch.nn.Linear(9, 3, bias=False).double())


def as_double(made):
    return [{**record, "inputs": record["inputs"].double()} for record in made]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clusters") / "store"
    return whence.build(task(), as_double(records()), folder, config=whence.BuildConfig(method="aligned"), runtime=QUIET)


def test_planted_groups_come_back(store):
    found = whence.clusters.clusters(store, k=3, central=2, quiet=True)
    assert [cluster.size for cluster in found.clusters] == [10, 10, 10]
    assert [len(set(found.labels[topic::3])) for topic in range(3)] == [1, 1, 1] and len(set(found.labels)) == 3
    for cluster in found.clusters:
        (source, count), *others = cluster.sources
        assert count == 10 and not others and cluster.tightness > 0.8
        assert set(TOPICS[source].split()) - {"the"} == {word for word, _ in cluster.words}
        assert len(cluster.central) == 2 and cluster.central[0].cosine >= cluster.central[1].cosine
        assert cluster.central[0].source == source and cluster.central[0].text.startswith(TOPICS[source])
        assert cluster.name == ", ".join(word for word, _ in cluster.words[:3])
    assert found.to_dict()["examples"]["t0"] == found.labels[0]
    again = whence.clusters.clusters(store.folder, k=3, central=2, quiet=True)
    assert again == found


def test_the_most_central_are_nearest_to_the_middle(store):
    found = whence.clusters.clusters(store, k=2, central=15, shared=4, quiet=True)
    rows, labels = principal(directions(store), 4), torch.tensor(found.labels)
    for number, cluster in enumerate(found.clusters):
        middle = torch.nn.functional.normalize(rows[labels == number].sum(0), dim=0)
        cosines = {found.ids[place]: float(rows[place] @ middle) for place in (labels == number).nonzero().flatten().tolist()}
        assert [one.cosine for one in cluster.central] == pytest.approx(sorted(cosines.values(), reverse=True)[:15], abs=1e-5)
        assert all(one.cosine == pytest.approx(cosines[one.id], abs=1e-5) for one in cluster.central)


def test_clusters_know_which_queries_they_help(store):
    asked = as_double(records(3, seed=1))
    for number, record in enumerate(asked):
        record["id"] = f"q{number}"
    table = whence.score_table(store, task(), asked, runtime=QUIET)
    found = whence.clusters.clusters(store, k=3, table=table, quiet=True)
    for cluster in found.clusters:
        query = list(TOPICS).index(cluster.sources[0][0])
        assert cluster.helps[0][0] == f"q{query}"
        members = [place for place in range(30) if place % 3 == query]
        row = table.scores[query].double()
        assert cluster.helps[0][1] == pytest.approx(float(row[members].sum() / row.abs().sum()))
    negated = whence.ScoreTable(-table.scores, table.query_ids, table.train_ids, "", "")
    assert whence.clusters.clusters(store, k=3, table=negated, quiet=True).clusters[0].harms[0] == (
        found.clusters[0].helps[0][0],
        pytest.approx(-found.clusters[0].helps[0][1]),
    )


def test_rows_are_the_gradients_that_influence_compares(tmp_path):
    """Inner products of the directions are cosines under EK-FAC, as the exact path has them: of a code of all numbers, to rounding."""
    made = as_double(records())
    whole = whence.build(
        task(), made, tmp_path / "store", config=whence.BuildConfig(method="aligned", dtype="float32"), runtime=QUIET
    )
    rows = directions(whole).double()
    # A query's gradient is that of its log-probability, minus that of its loss; a proponent raises it: the two signs cancel.
    exact = whence.attribute(
        task(),
        made,
        made,
        method=whence.EKFAC(damping=whence.Damping(relative=damping(whole)), normalize="cosine"),
        runtime=QUIET,
    )
    print(float((rows @ rows.T - exact.scores).abs().max()))
    torch.testing.assert_close(rows @ rows.T, exact.scores, rtol=0, atol=1e-5)


def damping(store):
    """Share of the mean eigenvalue that is inside the rows."""
    from whence.methods import METHODS

    return METHODS[store.blueprint.method].relative_damping


def test_examples_without_a_gradient_are_in_no_cluster(tmp_path):
    made = as_double(records())
    made[4]["inputs"] = torch.zeros(9, dtype=torch.float64)
    store = whence.build(task(), made, tmp_path / "store", config=whence.BuildConfig(method="aligned"), runtime=QUIET)
    found = whence.clusters.clusters(store, k=3, quiet=True)
    assert found.labels[4] == -1 and sum(cluster.size for cluster in found.clusters) == 29
    page = whence.clusters.write_clusters(tmp_path / "page.html", found).read_text()
    assert "1 examples teach nothing any more" in page
    assert "t4" not in whence.select.near_duplicates(store, cosine=0.5, quiet=True)


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_those_of_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = unit(torch.randn(40, 5, generator=generator, dtype=torch.float64))
    start = rows[:4]
    found = refine(rows, start)
    assert found.labels_N.tolist() == lloyd(rows.tolist(), start.tolist())
    means = unit(torch.stack([rows[found.labels_N == cluster].sum(0) for cluster in range(4)]))
    torch.testing.assert_close(found.centers_CK, means)
    torch.testing.assert_close(found.cosines_N, (rows * means[found.labels_N]).sum(1))


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_principal_directions_are_those_of_the_singular_value_decomposition(shape):
    rows = unit(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    kept = unit(left[:, :3] * sizes[:3])
    found = principal(rows, 3)
    assert found.shape == (shape[0], 3)
    torch.testing.assert_close(found @ found.T, kept @ kept.T)
    assert principal(rows, shape[1]) is rows


def test_what_is_shared_is_found_under_much_that_is_not():
    """A faint common part in many numbers of noise: in the few directions that are shared k-means finds it, in all of them it does not."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 6
    rows = unit(torch.randn(300, 300, generator=generator) + 3.4 * unit(torch.randn(6, 300, generator=generator))[truth])

    def agreement(rows):
        labels = spherical_kmeans(rows, 6, seed=0, restarts=2).labels_N
        return sum(int(torch.bincount(truth[labels == cluster], minlength=6).max()) for cluster in range(6)) / 300

    assert agreement(rows) < 0.6 and agreement(principal(rows, 6)) > 0.8


def test_more_starts_are_never_looser_and_empty_clusters_are_filled():
    rows = unit(torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    one, many = (spherical_kmeans(rows, 6, seed=3, restarts=count) for count in (1, 8))
    assert many.tightness >= one.tightness
    # Two centers start in one place, so one gets nothing; with all cosines above 0 nothing would come to it by itself.
    rows = unit(rows.abs())
    filled = refine(rows, torch.stack([rows[0], rows[0], rows[1]]))
    assert torch.bincount(filled.labels_N, minlength=3).min() > 0
    same = spherical_kmeans(rows[:1].expand(5, 4), 3, seed=0, restarts=1)
    assert same.labels_N.tolist() == [0] * 5


@pytest.mark.parametrize("least", [0.3, 0.7])
@pytest.mark.parametrize("count", [20, 700])
def test_leaders_are_those_of_a_loop(least, count):
    rows = unit(torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert _leaders(rows, least) == leaders(rows.tolist(), least)


def test_copies_are_found_and_the_best_of_them_kept(tmp_path):
    made = as_double(records(24))
    copies = [{**made[place], "id": f"copy {number} of {place}"} for number, place in enumerate((3, 3, 10))]
    store = whence.build(task(), made + copies, tmp_path / "store", config=whence.BuildConfig(method="aligned"), runtime=QUIET)
    found = whence.select.near_duplicates(store, cosine=1.0, quiet=True)
    assert found == {"copy 0 of 3": "t3", "copy 1 of 3": "t3", "copy 2 of 10": "t10"}
    table = whence.select.value_table(task(), made + copies, "loss", runtime=QUIET)
    with pytest.raises(BadInput, match="found a table whose values are loss; needed scores for queries"):
        whence.clusters.clusters(store, k=2, table=table, quiet=True)
    chosen = whence.select.select(table, duplicates=found, config=whence.settings.SelectConfig(keep=24))
    assert len(chosen.dropped) == 3 == chosen.summary()["duplicates_dropped"]


def test_words_against_the_formula():
    scores = dict(distinctive_words([Counter({"rook": 90, "the": 200}), Counter({"sail": 80, "the": 220})], 5)[0])
    # Of 590 words 90 are the rook's, all in the first 290; the prior has 100.
    prior = 100 * 90 / 590
    here, there = 90 + prior, prior
    z = (math.log(here / (390 - here)) - math.log(there / (400 - there))) / math.sqrt(1 / here + 1 / there)
    assert scores == {"rook": pytest.approx(z)}
    assert distinctive_words([Counter({"rook": 90, "the": 200}), Counter({"sail": 80, "a": 9})], 1)[1][0][0] == "sail"
    assert distinctive_words([Counter({"rook": 9}), Counter({"rook": 2})], 5) == [[], []]  # one word sets nothing apart
    assert distinctive_words([Counter(), Counter()], 5) == [[], []]
    assert words_of("Don't 12 x2 a_b") == {"don", "x2", "a_b"}


def test_what_cannot_be_clustered_is_said(store, tmp_path):
    for options, text in (
        ({"k": 1}, "found k=1 for 30 examples; needed from 2 to as many as there are"),
        ({"k": 31}, "found k=31 for 30 examples"),
        ({"central": 0}, "found central=0; needed 1 or more"),
        ({"shared": 0}, "found shared=0"),
        ({"restarts": 0}, "found restarts=0"),
    ):
        with pytest.raises(BadInput, match=text):
            whence.clusters.clusters(store, **options)
    for cosine in (0.0, 1.1):
        with pytest.raises(BadInput, match=f"found cosine={cosine}; needed above 0 and up to 1"):
            whence.select.near_duplicates(store, cosine=cosine)
    other = whence.build(
        task(), as_double(records()), tmp_path / "store", config=whence.BuildConfig(method="logra"), runtime=QUIET
    )
    for call in (whence.clusters.clusters, whence.select.near_duplicates):
        with pytest.raises(BadInput, match="found a store of logra .*needed rows whose inner products are influences"):
            call(other)


def test_the_page_holds_everything_and_escapes_it(store, tmp_path):
    found = whence.clusters.clusters(store, k=3, quiet=True)
    page = whence.clusters.write_clusters(tmp_path / "page.html", found, title="A <b> title").read_text()
    assert "A &lt;b&gt; title" in page and "30 training examples in 3 clusters" in page
    for cluster in found.clusters:
        assert all(one.id in page for one in cluster.central) and cluster.name in page
    assert json.dumps(found.to_dict())


def test_a_store_is_not_changed_by_looking(store):
    before = open_store(store.folder).files
    whence.clusters.clusters(store, k=2, quiet=True)
    assert open_store(store.folder).files == before

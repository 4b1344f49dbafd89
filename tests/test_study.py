"""Corpus studies: every reading against its definition, any cut of the corpus, stops, stores, what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.pages import page_commands, run_blocks, run_example
from tests.reference import study as slow
from tests.settings import QUIET
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.pipeline.exact import prepare, scorer
from whence.progress import meter
from whence.settings import StudyConfig
from whence.study import corpus, correlation, kept_scores, readouts
from whence.study import kinds as kinds_module

KINDS = ("book", "web", "web", "code")


def material(name="gpt2", documents=40):
    task, train = zoo.make(name, documents + 7)
    task.model.eval()
    examples = [dataclasses.replace(one, source=KINDS[place % 4]) for place, one in enumerate(train.examples)]
    asked = examples[documents:]
    return task, Dataset(examples[:documents]), {"facts": Dataset(asked[:3]), "code": Dataset(asked[3:])}


def squared_norms(task, train):
    """Of every document's whole loss gradient, by plain autograd."""
    found = []
    for example in train.examples:
        task.model.zero_grad()
        task.loss(task.model.eval(), task.collate([example])).sum().backward()
        found.append(sum(float(p.grad.square().sum()) for p in task.model.parameters() if p.grad is not None))
    task.model.zero_grad()
    return np.array(found)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    task, train, sets = material()
    folder = tmp_path_factory.mktemp("study")
    found = whence.study.study(task, train, sets, folder, config=StudyConfig(k=4), runtime=QUIET)
    queries = Dataset([one for some in sets.values() for one in some.examples])
    table = whence.attribute(task, train, queries, runtime=QUIET)
    nats_Q = np.array([-float(task.measurement(task.model, task.collate([one])).detach()) for one in queries.examples])
    norms_N = np.sqrt(squared_norms(task, train))
    values = {
        "per nat": slow.values(table.scores.numpy(), nats_Q),
        "per nat and norm": slow.values(table.scores.numpy(), nats_Q, norms_N),
    }
    return found, table, nats_Q, norms_N, values


def test_raw_scores_and_both_divisors_are_kept(studied):
    found, table, nats_Q, norms_N, _ = studied
    for query, scores_N in enumerate(table.scores):
        assert torch.allclose(found.scores.raw(query), scores_N, rtol=1e-9, atol=0)
    assert np.allclose(found.nats, nats_Q, rtol=1e-12) and np.allclose(found.scores.norms_N, norms_N, rtol=1e-9)
    assert found.query_ids[0] == "facts/40" and found.sets == {"facts": range(3), "code": range(3, 7)}
    assert found.corpus.norm == "the norm of its gradient"


@pytest.mark.parametrize("reading", ["per nat", "per nat and norm"])
def test_tails_mass_and_correlations_are_their_definitions(studied, reading):
    found, values = studied[0].readings[reading], studied[4][reading]
    for query, values_N in enumerate(values):
        assert found.tails.high_QK[query].tolist() == slow.tail(values_N, 4, top=True)
        assert found.tails.low_QK[query].tolist() == slow.tail(values_N, 4, top=False)
        assert np.allclose(found.tails.low_values_QK[query], np.sort(values_N)[:4], rtol=1e-9)
        expected = [slow.mass(values_N, share) for share in found.mass.shares]
        assert np.allclose(found.mass.mass_QX[query], expected, rtol=1e-9)
        assert float(found.mass.slope_Q[query]) == pytest.approx(slow.slope(values_N, 4), rel=1e-8)
    assert found.mass.shares == (0.05, 0.1, 0.25, 0.5)
    matrix = slow.correlations(values)
    assert np.allclose(found.correlation.matrix_QQ, matrix, atol=1e-12)
    within = matrix[3:, 3:][np.triu_indices(4, 1)].mean()
    between = matrix[:3, 3:].mean()
    means = {(one.first, one.second): one.mean for one in found.correlation.blocks}
    assert means["code", "code"].mean == pytest.approx(within) and means["facts", "code"].mean == pytest.approx(between)
    assert means["facts", "code"].low <= between <= means["facts", "code"].high


@pytest.mark.parametrize("reading", ["per nat", "per nat and norm"])
def test_histograms_count_every_score(studied, reading):
    found, values = studied[0].readings[reading].histograms, studied[4][reading]
    edges = found.edges_B.numpy()
    assert found.unit == pytest.approx(np.median([slow_median(row) for row in np.abs(values)]), rel=1e-9)
    for place, rows in enumerate((values[:3], values[3:])):
        # One ulp outwards, where the largest score is the edge.
        expected = np.histogram(rows, [edges[0] * (1 + 1e-9), *edges[1:-1], edges[-1] * (1 + 1e-9)])[0]
        assert found.counts_SB[place].tolist() == expected.tolist() and expected.sum() == rows.size


def slow_median(row):
    """torch's: the lower of the two in the middle."""
    return sorted(row)[(len(row) - 1) // 2]


def test_kinds_are_compared_with_the_corpus(studied):
    found = studied[0]
    kinds = [KINDS[place % 4] for place in range(40)]
    rows = found.readings["per nat"].tails.high_QK[3:].tolist()
    shares = {one.kind: one for one in found.readings["per nat"].kinds if (one.set, one.side) == ("code", "top")}
    assert set(shares) == set(KINDS)
    for kind, one in shares.items():
        assert one.ratio.mean == pytest.approx(slow.ratio(rows, kinds, kind))
        assert one.documents == kinds.count(kind) and one.expected == pytest.approx(16 * kinds.count(kind) / 40)
        assert one.found == 0 or one.ratio.low <= one.ratio.mean <= one.ratio.high
        assert np.isnan(one.ratio.low) or one.found
        assert one.chance[0] <= 1 <= one.chance[1]


def test_a_kind_that_fills_the_tails_is_beyond_chance_and_one_at_random_is_not():
    generator = torch.Generator().manual_seed(0)
    codes_N = torch.arange(400) % 4
    kinds = kinds_module.Kinds(KINDS[:1] + ("b", "c", "d"), codes_N)
    planted_QK = torch.stack([torch.randperm(100, generator=generator)[:10] * 4 for _ in range(6)])
    found = kinds_module.kind_shares(kinds, planted_QK, "s", "top", seed=0)
    assert found[0].kind == "book" and found[0].ratio.mean == 4 and all(one.is_beyond_chance for one in found)
    even = 0
    for draw in range(50):
        random_QK = torch.stack([torch.randperm(400, generator=generator)[:10] for _ in range(6)])
        even += sum(one.is_beyond_chance for one in kinds_module.kind_shares(kinds, random_QK, "s", "top", seed=draw))
    assert even / 200 < 0.1  # .05 by definition


def test_chance_knows_that_queries_share_documents():
    codes_N = torch.arange(400) % 4
    kinds = kinds_module.Kinds(("a", "b", "c", "d"), codes_N)
    same_QK = torch.arange(10).repeat(6, 1)  # one list six times says as much as one list
    apart_QK = torch.arange(60).view(6, 10)
    widths = [kinds_module.kind_shares(kinds, rows, "s", "top", seed=0)[0].chance for rows in (same_QK, apart_QK)]
    assert widths[0][1] - widths[0][0] > 2 * (widths[1][1] - widths[1][0])


def test_queries_of_planted_sets_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, 300, generator=generator)
    values = torch.cat([common[place] + torch.randn(5, 300, generator=generator) for place in range(2)])
    sets = {"a": range(5), "b": range(5, 10)}
    found = correlation.by_sets(torch.from_numpy(slow.correlations(values.numpy())), sets, seed=0)
    means = {(one.first, one.second): one.mean for one in found.blocks}
    assert means["a", "a"].low > means["a", "b"].high and found.p_value < 0.02 and found.difference > 0.3
    noise = torch.from_numpy(slow.correlations(torch.randn(10, 300, generator=generator).numpy()))
    assert correlation.by_sets(noise, sets, seed=0).p_value > 0.05


def test_too_few_queries_have_no_interval_and_one_set_no_difference():
    matrix = torch.eye(3, dtype=torch.float64)
    found = correlation.by_sets(matrix, {"a": range(1), "b": range(1, 3)}, seed=0)
    by_name = {(one.first, one.second): one for one in found.blocks}
    assert by_name["a", "a"].pairs == 0 and np.isnan(by_name["a", "a"].mean.mean)
    assert by_name["b", "b"].mean.mean == 0 and np.isnan(by_name["b", "b"].mean.low)
    alone = correlation.by_sets(matrix, {"a": range(3)}, seed=0)
    assert np.isnan(alone.p_value) and alone.to_dict()["p_value"] is None


def test_a_query_drawn_twice_makes_no_pair_with_itself():
    matrix = torch.full((5, 5), 0.25, dtype=torch.float64).fill_diagonal_(1.0)
    (block,) = correlation.by_sets(matrix, {"a": range(5)}, seed=0).blocks
    assert (block.mean.low, block.mean.mean, block.mean.high) == pytest.approx((0.25, 0.25, 0.25))


def test_blocks_of_ranks_give_the_same_matrix(studied):
    kept = studied[0].scores
    with meter("", 1, quiet=True) as progress:
        whole, cut = (correlation.correlations(kept, by_norm=True, progress=progress, numbers=n) for n in (1 << 20, 85))
    assert torch.allclose(whole, cut, rtol=0, atol=1e-15)


def test_equal_scores_stay_in_corpus_order_and_constant_queries_correlate_with_none(tmp_path):
    scores = torch.tensor([[0.0, 2.0, 0.0, 2.0, -1.0, -1.0], [5.0] * 6])
    names = [f"{number:05d}.safetensors" for number in range(2)]
    parts = scores.split(3, dim=1)
    sums = {name: kept_scores.write_tensors(tmp_path / name, {"scores": part}) for name, part in zip(names, parts, strict=True)}
    kept = kept_scores.StoredScores(tmp_path, (3, 3), 2, torch.tensor([1.0, 2.0]), False, sums)
    with meter("", 1, quiet=True) as progress:
        tails, mass, sizes = readouts.tails_and_mass(kept, 3, by_norm=False, progress=progress)
        matrix = correlation.correlations(kept, by_norm=False, progress=progress)
        counted = readouts.histograms(kept, {"all": range(2)}, sizes, by_norm=False, progress=progress)
    assert tails.high_QK.tolist() == [[1, 3, 0], [0, 1, 2]] and tails.low_QK.tolist() == [[4, 5, 0], [0, 1, 2]]
    assert matrix[0, 1] == 0 and matrix[1, 1] == 0 and matrix[0, 0] == pytest.approx(1)
    assert int(counted.counts_SB.sum()) == 12 and mass.mass_QX[0, -1] == 1 and torch.isnan(mass.slope_Q[0])


def test_any_cut_of_the_corpus_gives_the_same_study(studied, tmp_path, monkeypatch):
    task, train, sets = material()
    monkeypatch.setattr(corpus, "_SHARD", 7)
    found = whence.study.study(task, train, sets, tmp_path, config=StudyConfig(k=4), runtime=QUIET)
    assert found.scores.sizes == (7, 7, 7, 7, 7, 5)
    one, other = (json.loads((folder / "study.json").read_text()) for folder in (tmp_path, studied[0].folder))
    assert one["readings"]["per nat"]["correlation"]["p_value"] == other["readings"]["per nat"]["correlation"]["p_value"]
    for query in range(7):
        assert torch.allclose(found.scores.raw(query), studied[0].scores.raw(query), rtol=1e-9, atol=1e-18)


def test_a_stopped_study_goes_on_with_the_shard_it_was_at(tmp_path, monkeypatch):
    task, train, sets = material()
    monkeypatch.setattr(corpus, "_SHARD", 10)
    scan, calls = scorer.exact_scores, []

    def stopping(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scan(*arguments, **named)

    monkeypatch.setattr(scorer, "exact_scores", stopping)
    with pytest.raises(KeyboardInterrupt):
        whence.study.study(task, train, sets, tmp_path, runtime=QUIET)
    assert not (tmp_path / "study.json").exists() and len(list((tmp_path / "scores").glob("0*"))) == 2
    whence.study.study(task, train, sets, tmp_path, runtime=QUIET)
    assert len(calls) == 5  # shards 2 and 3 only
    first = (tmp_path / "study.json").read_bytes()
    whence.study.study(task, train, sets, tmp_path, runtime=QUIET)
    assert len(calls) == 5 and (tmp_path / "study.json").read_bytes() == first
    whence.study.study(task, train, sets, tmp_path, config=StudyConfig(k=2), runtime=QUIET)
    assert len(calls) == 5  # another reading of the same scores


@pytest.mark.parametrize("method", ["logra", "aligned", "trak", "grad-cos", "trackstar"])
def test_a_store_is_studied_by_its_rows(tmp_path, method):
    task, train, sets = material(documents=30)
    options = {"rank": 6} if method in ("logra", "grad-cos", "trackstar") else {"rank": 12} if method == "trak" else {}
    options |= {"bytes_per_example": 128} if method == "aligned" else {}
    store = whence.build(
        task, train, tmp_path / "store", config=whence.BuildConfig(method=method, rows_per_shard=8, **options), runtime=QUIET
    )
    queries = Dataset([one for some in sets.values() for one in some.examples])
    table = whence.score_table(store, task, queries, runtime=QUIET)
    found = whence.study.study(task, tmp_path / "store", sets, tmp_path / "study", config=StudyConfig(k=3), runtime=QUIET)
    assert len(found.scores.sizes) == len(store.seals) > 1
    for query, scores_N in enumerate(table.scores):
        assert torch.equal(found.scores.raw(query), scores_N)
    if method in ("grad-cos", "trackstar"):
        assert list(found.readings) == ["per nat"] and found.corpus.norm == ""
        return
    squares = torch.cat(
        [
            sum(store.codec.decode(one, i).square().sum(1) for i in range(len(store.blueprint.units)))
            for _, one in store.shards()
        ]
    )
    if method == "trak":
        squares = squares * torch.cat([one["weights"] for _, one in store.shards()]).square()
    assert torch.allclose(
        found.scores.norms_N, squares.sqrt().to(found.scores.norms_N), rtol=1e-5 if method == "aligned" else 2e-2
    )
    hits = found.hits(k=2)
    assert hits.proponents[0][0].id == store.ids()[int(found.readings["per nat"].tails.high_QK[0, 0])]
    assert hits.proponents[0][0].score == pytest.approx(float(table.scores[0].max()), rel=1e-5)


def test_kinds_can_be_given_by_id(tmp_path):
    task, train, sets = material(documents=20)
    kinds = {name: "even" if int(name) % 2 == 0 else "odd" for name in train.ids}
    found = whence.study.study(
        task, train, sets, tmp_path, method="grad-dot-exact", config=StudyConfig(kinds=kinds), runtime=QUIET
    )
    assert {one.kind for one in found.readings["per nat"].kinds} == {"even", "odd"} and found.k == 2
    with pytest.raises(BadInput, match="no kind of the document '1'"):
        whence.study.study(
            task,
            train,
            sets,
            tmp_path,
            method="grad-dot-exact",
            config=StudyConfig(kinds={"0": "even"}),
            runtime=QUIET,
        )


def test_the_page_and_the_file_say_what_was_found(studied):
    found = studied[0]
    page = (found.folder / "study.html").read_text()
    for text in (
        "Which queries rank alike, per nat and norm",
        "facts - code",
        "Kinds of document in the tails",
        "All scores",
        "book",
    ):
        assert text in page
    assert "<script" not in page and "src=" not in page and "://" not in page
    content = json.loads((found.folder / "study.json").read_text())
    assert content == json.loads(json.dumps(found.to_dict())) and "NaN" not in (found.folder / "study.json").read_text()
    top = content["readings"]["per nat and norm"]["tails"][0]["top"][0]
    row = top["row"]
    assert top["score"] == pytest.approx(float(studied[1].scores[0, row]), rel=1e-8)
    assert top["norm"] == pytest.approx(studied[3][row], rel=1e-8)
    assert top["value"] == pytest.approx(top["score"] / found.nats[0] / top["norm"], rel=1e-9)


def test_a_classifier_is_studied_too(tmp_path):
    torch.manual_seed(0)
    task = whence.Classification(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    records = [(torch.randn(4), number % 3) for number in range(30)]
    found = whence.study.study(task, records, {"one": records[:2]}, tmp_path, runtime=QUIET)
    assert found.k == 3 and found.cells()[0][1:3] == ("one", "2") and (tmp_path / "study.html").exists()


def test_what_is_refused(tmp_path):
    task, train, sets = material(documents=20)
    with pytest.raises(BadInput, match="found no sets of queries"):
        whence.study.study(task, train, {}, tmp_path)
    with pytest.raises(BadInput, match="k=11 for 20 documents; needed 1 to 10"):
        whence.study.study(task, train, sets, tmp_path, config=StudyConfig(k=11))
    with pytest.raises(BadInput, match="method for a store; needed training data"):
        whence.study.study(task, tmp_path / "store", sets, tmp_path, method=whence.settings.KFAC())
    with pytest.raises(BadInput, match="damping for training data; needed a store"):
        whence.study.study(task, train, sets, tmp_path, damping=whence.Damping(rule="mean"))
    with pytest.raises(BadInput, match="method='source', which goes back through a recorded run"):
        whence.study.study(task, train, sets, tmp_path, method="source", runtime=QUIET)
    whence.study.study(task, train, sets, tmp_path / "made", method="grad-dot-exact", runtime=QUIET)
    with pytest.raises(StoreMismatch, match="scores with another dampings, another method"):
        whence.study.study(task, train, sets, tmp_path / "made", method="ekfac", runtime=QUIET)
    with pytest.raises(StoreMismatch, match="scores with another queries"):
        whence.study.study(task, train, {"facts": sets["facts"]}, tmp_path / "made", method="grad-dot-exact", runtime=QUIET)
    (tmp_path / "made" / "scores" / "00000.safetensors").write_bytes(b"broken")
    with pytest.raises(StoreCorrupt, match="00000.safetensors .*delete it and run the study again"):
        whence.study.study(task, train, sets, tmp_path / "made", method="grad-dot-exact", runtime=QUIET)


def test_queries_that_do_not_fit_at_once_are_refused(tmp_path, monkeypatch):
    task, train, sets = material(documents=20)
    measure = prepare.measure
    monkeypatch.setattr(
        prepare, "measure", lambda *given, **named: dataclasses.replace(measure(*given, **named), rows_at_once=3)
    )
    with pytest.raises(BadInput, match=r"7 queries, of which 3 fit in memory at once; .*query_rank=32"):
        whence.study.study(task, train, sets, tmp_path, method="grad-dot-exact", runtime=QUIET)


def test_a_query_without_loss_is_refused(tmp_path):
    task, train = zoo.make("regression", 30)
    done = task.model(torch.stack([torch.as_tensor(train.examples[0].fields["inputs"])])).detach()[0]
    perfect = dataclasses.replace(train.examples[0], fields={**train.examples[0].fields, "target": done})
    with pytest.raises(BadInput, match="the query 'one/0' with a loss of 0; needed a positive number"):
        whence.study.study(task, train, {"one": Dataset([perfect])}, tmp_path, runtime=QUIET)


def page(folder):
    return (folder / "study.html").read_text("utf-8")


@pytest.fixture
def sets(tmp_path):
    for name, texts in (("cats", ["a cat ran", "a cat sat"]), ("dogs", ["the dog sat", "dogs bark", "the dog sleeps"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ["--set", f"cats={tmp_path / 'cats.jsonl'}", "--set", f"dogs={tmp_path / 'dogs.jsonl'}"]


def test_the_command_studies_a_store_and_the_data_itself(tmp_path, run, monkeypatch, model_folder, data_file, sets):
    monkeypatch.setenv("COLUMNS", "200")  # long cells wrap in a narrow terminal
    run("build", model_folder, data_file, "-o", tmp_path / "store", "--method", "logra", "--rank", 4)
    text = run("study", tmp_path / "store", *sets, "-o", tmp_path / "one", "-k", 2)
    assert "nan" not in text  # two documents of a tail have no power of the rank
    assert "note: 2 queries or fewer in cats: too few for an interval" in text
    content = json.loads((tmp_path / "one" / "study.json").read_text())
    assert content["notes"][0] == text.split("note: ")[1].splitlines()[0] and content["notes"][0] in page(tmp_path / "one")
    within = [
        one["mean"]["low"] for one in content["readings"]["per nat"]["correlation"]["blocks"] if len(set(one["sets"])) == 1
    ]
    assert within[0] is None and within[1] is not None  # two cats, three dogs
    assert "per nat and norm" in text and "cats" in text and (tmp_path / "one" / "study.html").exists()
    (tmp_path / "kinds.csv").write_text("id,kind\n" + "".join(f"t{n},{'even' if n % 2 == 0 else 'odd'}\n" for n in range(12)))
    options = ["--method", "kfac", "--kinds", tmp_path / "kinds.csv", "--json"]
    found = json.loads(run("study", model_folder, data_file, *sets, "-o", tmp_path / "two", *options))
    assert found["num_kinds"] == 2 and list(found["sets"]) == ["cats", "dogs"] and found["method"].startswith("kfac")
    assert {one["kind"] for one in found["readings"]["per nat"]["kinds"]} == {"even", "odd"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "cats"], "found --set cats; needed name=file"),
        (["--set", "a=A", "--set", "a=A"], "needed name=file, every name once"),
        (["--set", "a=A", "--kinds", "A"], "found record 0 of"),
        (["--set", "a=A", "--model", "x"], "found --model for training data"),
        (["--set", "a=A", "--damping-rule", "mean"], "found damping_rule for ekfac"),
        (["--set", "a=nowhere.jsonl"], "found no data at nowhere.jsonl"),
        ([], "found whence study without --set SET"),
    ],
)
def test_the_command_refuses(tmp_path, run, model_folder, data_file, options, says):
    options = [option.replace("A", str(data_file)) for option in options]
    error = run("study", model_folder, data_file, *options, "-o", tmp_path / "s", status=2)
    assert says in error
    assert error.count("\n") == 1


def test_a_store_refuses_what_it_knows(tmp_path, run, model_folder, data_file, sets):
    run("build", model_folder, data_file, "-o", tmp_path / "store", "--method", "logra", "--rank", 4)
    for option, says in ((["--split", "test"], "--split for a store"), (["--fit-on", "3"], "fit_on for a store")):
        assert says in run("study", tmp_path / "store", *sets, "-o", tmp_path / "s", *option, status=2)


def test_the_page_about_studies_is_true(run, reader):
    """Its Python as it stands, and its commands, with the tiny model and data where the reader's own would be."""
    for name in ("facts.jsonl", "code.jsonl"):
        (reader / name).symlink_to("train.jsonl")
    for words in page_commands("docs/corpus-study.md", 3):
        shutil.rmtree(reader / "study", ignore_errors=True)
        run(*words)
    shutil.rmtree(reader / "study")
    run_blocks("docs/corpus-study.md", 1)
    assert (reader / "study" / "study.html").exists()


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    printed = run_example("corpus-study/python_docs.py", tmp_path, "--documents", "400", "--epochs", "2")
    assert "Own kind of document in the top tails" in printed and (tmp_path / "study" / "study.html").exists()
    shares = json.loads((tmp_path / "study" / "study.json").read_text())["readings"]["per nat"]["kinds"]
    own = [one for one in shares if one["set"] == one["kind"] == "language reference" and one["side"] == "top"]
    assert own[0]["ratio"]["mean"] > 1

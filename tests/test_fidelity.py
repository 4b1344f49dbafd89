"""How far a store's scores agree with exact ones: what a build measures is what its public face gives."""

import json

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

import whence
from tests.settings import QUIET
from whence.cli import app
from whence.data import Dataset
from whence.errors import StoreCorrupt
from whence.load import load_task
from whence.pipeline import refit
from whence.store import fidelity_notes, open_store, read_fidelity

WIDTH, CLASSES = 12, 4
EXACT = whence.EKFAC(damping=whence.Damping(relative=0.1))
WORDS = ["cat", "dog", "hat", "mat", "rat", "sun", "sea"]


def task():
    torch.manual_seed(0)
    return whence.Classification(nn.Sequential(nn.Linear(WIDTH, 10), nn.Tanh(), nn.Linear(10, CLASSES)))


def records(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(count, WIDTH, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
    return [{"id": f"{seed}-{n}", "inputs": x, "label": int(y)} for n, (x, y) in enumerate(zip(inputs, labels, strict=True))]


def by_hand(store, asked, queries, documents, data):
    """Mean correlations of the store's table with that of EK-FAC, for some documents."""
    stored = whence.score_table(store, asked, Dataset(queries), runtime=QUIET)
    exact = whence.attribute(asked, data, Dataset(queries), method=EXACT, runtime=QUIET)
    columns = [stored.train_ids.index(example.id) for example in documents]
    pairs = list(zip(stored.scores[:, columns].double(), exact.scores[:, columns], strict=True))
    return [sum(how(*pair).statistic for pair in pairs) / len(pairs) for how in (spearmanr, pearsonr)]


def test_what_is_measured_is_what_scores_show(tmp_path):
    asked = task()
    data = asked.prepare(records(200))
    store = whence.build(asked, data, tmp_path, config=whence.BuildConfig(rank=24, axes_examples=40), runtime=QUIET)
    found = read_fidelity(store)[data.fingerprint]
    sample = {example.id for example in data.spread(40).examples}
    outside = Dataset([example for example in data.examples if example.id not in sample])
    queries = outside.spread(16).examples
    others = Dataset([example for example in outside.examples if example.id not in {query.id for query in queries}])
    assert found.queries == 16 and found.learned.documents == 40 and found.others.documents == 128
    for agreement, documents in ((found.learned, data.spread(40).examples), (found.others, others.spread(128).examples)):
        wanted = by_hand(store, asked, queries, documents, data)
        assert [agreement.spearman[0], agreement.pearson[0]] == pytest.approx(wanted, abs=2e-3)
    assert found.others.spearman[0] < found.learned.spearman[0] < 1
    assert found.learned.spearman[1] < found.learned.spearman[0] < found.learned.spearman[2]


def test_a_code_that_keeps_everything_agrees(tmp_path):
    asked = task()
    data = asked.prepare(records(60))
    store = whence.build(asked, data, tmp_path, config=whence.BuildConfig(rank=60, dtype="float32"), runtime=QUIET)
    found = read_fidelity(store)[data.fingerprint]
    # All documents are in the sample: those that stand in for queries, too.
    assert found.others is None and found.queries == 7 and found.learned.documents == 53
    assert min(found.learned.pearson) > 0.999
    queries = data.spread(7)
    documents = Dataset([example for example in data.examples if example.id not in {query.id for query in queries.examples}])
    exact = whence.attribute(asked, data, queries, method=EXACT, runtime=QUIET)
    scores = exact.scores[:, [exact.train_ids.index(name) for name in documents.ids]]
    lengths = whence.self_influence(asked, data, method=EXACT, runtime=QUIET)
    sizes = lengths.scores[0, [lengths.train_ids.index(name) for name in documents.ids]]
    by_length = [spearmanr(sizes, row).statistic for row in scores]
    by_other = [spearmanr(other, row).statistic for other, row in zip(scores.roll(1, 0), scores, strict=True)]
    assert found.controls.length.spearman[0] == pytest.approx(sum(by_length) / 7, abs=1e-3)
    assert found.controls.unrelated.spearman[0] == pytest.approx(sum(by_other) / 7, abs=1e-3)
    assert found.controls.bm25 is None and found.controls.length.documents == 53


def test_texts_have_a_control_by_their_words(tmp_path, model_folder):
    task, _ = load_task(str(model_folder))
    texts = [{"id": f"t{n}", "text": f"the {WORDS[n % 7]} saw a {WORDS[n % 5]} near the {WORDS[n % 3]}"} for n in range(60)]
    data = task.prepare(texts)
    found = read_fidelity(whence.build(task, data, tmp_path, runtime=QUIET))[data.fingerprint]
    assert -1 <= found.controls.bm25.spearman[0] <= 1 and "shared words (BM25) " in str(found)


@pytest.mark.parametrize("rank", [120, 60])
def test_members_of_the_sample_stand_in_for_queries_from_outside(tmp_path, rank):
    asked = task()
    data, new = asked.prepare(records(120)), asked.prepare(records(60, seed=3))
    store = whence.build(asked, data, tmp_path, config=whence.BuildConfig(rank=rank, dtype="int2"), runtime=QUIET)
    found = read_fidelity(store)[data.fingerprint]
    outside = by_hand(store, asked, new.examples, data.examples, data)
    assert found.is_outside is False and found.others is None
    assert [found.learned.spearman[0], found.learned.pearson[0]] == pytest.approx(outside, abs=0.04)


def test_answers_and_inspect_tell(tmp_path, capsys):
    asked = task()
    data, more = asked.prepare(records(60)), asked.prepare(records(40, seed=1))
    whence.build(asked, data, tmp_path, config=whence.BuildConfig(rank=8), runtime=QUIET)
    store = whence.build(asked, more, tmp_path, append=True, config=whence.BuildConfig(rank=8), runtime=QUIET)
    known = read_fidelity(store)
    assert set(known) == {data.fingerprint, more.fingerprint}
    # Nothing was learned from what was appended.
    assert known[more.fingerprint].learned is None and known[more.fingerprint].others.documents == 35
    notes = whence.query(store, asked, records(1, seed=2), runtime=QUIET).notes
    told = [note for note in notes if note.startswith("stored against exact EK-FAC scores: Spearman ")]
    assert told == [f"{known[data.fingerprint]} (60 rows)", f"{known[more.fingerprint]} (40 rows)"]
    by = "5 documents that nothing was learned from stood in for queries; for comparison, Spearman of gradient length "
    assert f"on documents that it was not learned from; {by}" in told[1]
    app(["inspect", str(tmp_path)], result_action="return_value")
    printed = capsys.readouterr().out
    assert all(note in printed for note in told)
    app(["inspect", str(tmp_path), "--json"], result_action="return_value")
    assert json.loads(capsys.readouterr().out)["fidelity"][more.fingerprint]["others"]["documents"] == 35


def test_few_documents_say_nothing(tmp_path):
    asked = task()
    store = whence.build(asked, records(12), tmp_path, config=whence.BuildConfig(rank=8), runtime=QUIET)
    assert not read_fidelity(store) and "fidelity.json" not in store.files


@pytest.mark.parametrize("content", ["[]", '{"x": {"queries": 2}}', '{"x": {"queries": 2, "learned": 3, "others": null}}'])
def test_another_file_is_refused(tmp_path, content):
    asked = task()
    store = whence.build(asked, records(60), tmp_path, config=whence.BuildConfig(rank=8), runtime=QUIET)
    (tmp_path / "fidelity.json").write_text(content)
    with pytest.raises(StoreCorrupt):
        read_fidelity(open_store(store.folder, check=False))


def test_rows_that_are_added_and_scored_less_well_are_told(tmp_path):
    """The code holds the first documents' own directions; those of others of another kind are not among them."""
    asked = task()
    store = whence.build(
        asked, records(40), tmp_path / "s", config=whence.BuildConfig(method="aligned", rank=40), runtime=QUIET
    )
    assert not any("added" in note for note in fidelity_notes(store))
    shifted = [{**record, "id": f"new-{record['id']}", "inputs": record["inputs"] * 5 + 3} for record in records(60, seed=4)]
    store = whence.build(
        asked, shifted, store.folder, append=True, config=whence.BuildConfig(method="aligned", rank=40), runtime=QUIET
    )
    told = [note for note in fidelity_notes(store) if "rows that were added agree less" in note]
    assert len(told) == 1 and "whence refit" in told[0]
    store = refit(store.folder, asked, [*records(40), *shifted], quiet=True)
    assert len(fidelity_notes(store)) == 1 and "agree less" not in fidelity_notes(store)[0]

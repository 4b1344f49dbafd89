"""What is copied and what is related by words: every run against trying everything, BM25 against the baseline, what readers see."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

import whence
from tests.pages import page_commands, run_blocks, run_example
from tests.reference import words as slow
from tests.reference.baselines import bm25_score
from tests.settings import QUIET
from tests.test_lm_records import bytes_task
from whence.data import Dataset, Example
from whence.errors import BadInput, StoreCorrupt
from whence.report import beside_of
from whence.score import bm25, longest_shared, word_index, words_of
from whence.score import words as words_module


def corpus(seed, *, documents=30, alphabet=4, longest=12):
    """Texts of few words, so that runs repeat; some are empty, some a copy of another one."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choice("abcdefgh"[:alphabet]) for _ in range(draw.randrange(longest))) for _ in range(documents)]
    return [*texts, texts[1], texts[1] + " " + texts[2]]


@pytest.mark.parametrize("piece", [1 << 22, 20, 1])
@pytest.mark.parametrize("seed", range(3))
def test_every_run_is_what_trying_everything_finds(tmp_path, monkeypatch, piece, seed):
    monkeypatch.setattr(words_module, "_PIECE", piece)
    monkeypatch.setattr(words_module, "_IN_MEMORY", 2)
    texts = corpus(seed)
    index = word_index(iter(texts), tmp_path, identity="a")
    assert (len(index.pieces) > 1) == (piece < 1 << 22) and index.num_documents == len(texts)
    documents = [slow.words(text) for text in texts]
    asked = ["A b, c. d a a b", "zz a b c zz", texts[1], "zz", "", texts[5] + " zz " + texts[6], "a a a a a a a a a a a a a a"]
    for text in asked:
        for least in (1, 3):
            words, characters = words_of(text)
            expected = slow.longest_runs(words, documents, least)
            spans = index.spans(text, least=least)
            assert [(one.start, one.stop, one.words, one.count, list(one.rows)) for one in spans] == [
                (characters[at][0], characters[at + size - 1][1], size, count, rows[:5]) for at, size, count, rows in expected
            ]
        weights = [bm25_score(slow.words(text), document, documents, 1.2, 0.75) for document in documents]
        np.testing.assert_allclose(index.bm25(text), weights, rtol=1e-12)


def test_bm25_is_that_of_the_baseline(tmp_path):
    texts = ["The cat sat on the mat.", "A dog sat", "the THE the cat", "rain; rain again", "Un été à la mer", "?!"]
    index = word_index(texts, tmp_path, identity="a")
    train = Dataset([Example(str(row), {}, text=text) for row, text in enumerate(texts)])
    for text in ("the cat", "Cat rain cat", "nothing shared", "été", "..."):
        table = bm25(train, Dataset([Example("q", {}, text=text)]))
        np.testing.assert_allclose(index.bm25(text), table.scores[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_suffix_array_is_a_sort_of_all_ends(seed):
    words = np.random.default_rng(seed).integers(0, 3, 60)
    ends = sorted(range(60), key=lambda at: words[at:].tolist())
    assert words_module.suffix_array(words).tolist() == ends
    assert words_module.suffix_array(np.zeros(17, np.int32)).tolist() == list(range(16, -1, -1))


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_run_of_two_texts(seed):
    draw = random.Random(seed)
    first, second = ([draw.choice("abc") for _ in range(15)] for _ in range(2))
    a, b, size = longest_shared(first, second)
    assert size == slow.shared(first, second) > 0 and first[a : a + size] == second[b : b + size]
    assert longest_shared(first, ["z"]) == (0, 0, 0) == longest_shared([], second)


def test_an_index_is_opened_again_and_replaced_for_another_corpus(tmp_path, monkeypatch):
    made = []
    build = words_module.suffix_array
    monkeypatch.setattr(words_module, "suffix_array", lambda words: made.append(1) or build(words))
    first = word_index(["a b c"], tmp_path, identity="one")
    again = word_index(iter(()), tmp_path, identity="one")  # the texts are not looked at
    assert again == first and len(made) == 1
    other = word_index(["x y z", "q"], tmp_path, identity="two")
    assert len(made) == 2 and other.num_documents == 2 and other.spans("a b c x y z", least=2)[0].words == 3
    with pytest.raises(BadInput, match="2 documents without a word of text"):
        word_index(["", "?!"], tmp_path / "none", identity="a")


def test_a_changed_piece_is_refused(tmp_path):
    index = word_index(["a b c d e"], tmp_path, identity="one")
    (path,) = tmp_path.glob("words-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="not those that were written.* do this: delete the folder of the index of words"):
        index.spans("a b c d e")
    parts = {"words": [1, 0], "suffixes": [1, 7], "starts": [0, 2], "vocabulary": [5]}
    sealed = words_module.write_tensors(path, {name: words_module.torch.tensor(part) for name, part in parts.items()})
    wrong = words_module.WordIndex(tmp_path, 1, 1, {path.name: sealed})
    with pytest.raises(StoreCorrupt, match="its parts do not fit together"):
        wrong.spans("a b c d e")


TEXTS = [
    "the old man and the sea is a short novel",
    "rain falls on the old roof",
    "a novel about an old man, a boat and the sea",
    "nothing in common here whatsoever",
    *(f"filler number {number} about trains" for number in range(30)),
]


def found(tmp_path, completion="The Old Man and the Sea", prompt=""):
    index = word_index(TEXTS, tmp_path, identity="a")
    hits = [whence.report.Hit(f"d{row}", row, 1.0, "s", text) for row, text in enumerate(TEXTS)]
    return beside_of(index, prompt, completion, hits, lambda row: hits[row])


def test_hits_are_copied_related_or_only_influential(tmp_path):
    beside = found(tmp_path)
    kinds = [beside.hits[row].kind for row in range(4)]
    assert kinds == ["copied", "related", "related", "influential"]
    assert beside.hits[0].words == 6 and TEXTS[0][slice(*beside.hits[0].span)] == "the old man and the sea"
    assert beside.hits[0].bm25_rank == 1 and beside.hits[3].words == 0 and beside.hits[3].bm25 == 0
    assert beside.covered == 1 and [beside.run(span) for span in beside.spans] == ["The Old Man and the Sea"]
    assert [one.id for one in beside.related][:2] == ["d0", "d2"] and all(one.is_hit for one in beside.related)
    # The prompt counts for BM25 and is not looked for word for word.
    asked = found(tmp_path, "whatsoever", "the old man and the sea")
    assert not asked.spans and asked.hits[0].kind == "related" and asked.covered == 0


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    task = bytes_task(length=48)
    train = task.prepare([{"id": f"d{row}", "text": text[:40]} for row, text in enumerate(TEXTS[:6])])
    folder = tmp_path_factory.mktemp("words")
    store = whence.build(task, train, folder / "store", config=whence.BuildConfig(method="logra", rank=4), runtime=QUIET)
    return task, train, store, folder


def test_query_and_why_have_a_second_column(asked, capsys):
    task, train, store, folder = asked
    hits = whence.query(store, task, [{"prompt": "rain", "completion": " falls on the old roof"}], k=6, runtime=QUIET)
    both = whence.pipeline.with_words(hits, store, folder / "w1")
    again = whence.pipeline.with_words(hits, train, folder / "w2")
    assert both.beside == again.beside and both.beside[0].spans[0].rows == (1,) and both.beside[0].spans[0].words == 5
    told = both.to_dict()["queries"][0]["beside"]
    assert told["spans"][0]["text"] == "falls on the old roof" and told["spans"][0]["documents"][0]["id"] == "d1"
    assert {one["row"] for one in told["hits"]} == {hit.row for side in (hits.proponents, hits.opponents) for hit in side[0]}
    both.show()
    printed = " ".join(capsys.readouterr().out.split())
    assert "copied: shares 5 words: falls on the old roof" in printed  # the prompt is not the completion
    assert "5 words, 1 times: falls on the old roof (d1 (found by influence, too))" in printed
    page = both._repr_html_()
    assert "<b>copied</b>: shares 5 words: falls on the old roof; BM25 rank 1 of 6" in page
    why = whence.why.why(task, "rain", " falls on the old roof", train=train, k=6, runtime=QUIET)
    assert "beside" not in why.to_dict()
    why = replace(
        why, hits=whence.pipeline.with_words(why.hits, train, folder / "w2", completions=[("rain", " falls on the old roof")])
    )
    assert why.to_dict()["beside"]["spans"][0]["words"] == 5 and "<b>copied</b>" in why._repr_html_()
    why.show()
    assert "5 words, 1 times" in capsys.readouterr().out


def test_deleted_rows_are_not_in_the_words(asked, tmp_path):
    _, _, store, folder = asked
    shutil.copytree(store.folder, tmp_path / "store")
    opened = whence.open_store(tmp_path / "store")
    assert whence.pipeline.store_words(opened, tmp_path / "w").spans("falls on the old roof")
    whence.store.delete_rows(tmp_path / "store", ["d1"])
    later = whence.open_store(tmp_path / "store")
    assert not whence.pipeline.store_words(later, tmp_path / "w").spans("falls on the old roof")


def test_a_study_says_what_is_copied(asked, tmp_path):
    task, train, _, _ = asked
    sets = {
        "copied": [{"prompt": "rain", "completion": " falls on the old roof"}] * 1,
        "other": [{"prompt": "rain", "completion": " zebra"}],
    }
    config = whence.settings.StudyConfig(k=2, verbatim=True)
    study = whence.study.study(task, train, sets, tmp_path, method="grad-dot-exact", config=config, runtime=QUIET)
    cells = {row[0]: row[1:] for row in study.copied()}
    assert cells["copied"][0] == "100%" and cells["other"][0] == "0%"
    for query, name in enumerate(sets):
        top = study.readings["per nat"].tails.high_QK[query].tolist()
        kinds = [study.beside[query].hits[row].kind for row in top]
        assert cells[name][1:] == tuple(f"{kinds.count(one) / 2:.0%}" for one in ("copied", "related", "influential"))
    assert len(json.loads((tmp_path / "study.json").read_text())["beside"]) == 2
    assert "What is copied" in (tmp_path / "study.html").read_text()
    assert (tmp_path / "words" / "words.json").exists()


def test_from_the_command_line(run, tmp_path, model_folder, data_file):
    store = tmp_path / "store"
    run("build", model_folder, data_file, "-o", store)
    asked = ("--prompt", "the", "--completion", " dog ran off", "-k", 3)
    answer = json.loads(run("query", store, *asked, "--verbatim", tmp_path / "words", "--json"))["queries"][0]["beside"]
    assert answer["spans"] == [] and answer["related"][0]["id"] == "t5"  # three words make no run
    told = json.loads(run("why", store, *asked, "--verbatim", tmp_path / "words", "--json"))
    assert told["beside"]["related"] == answer["related"]
    data = ("why", "--model", model_folder, "--train", data_file, *asked, "--method", "grad-dot-exact")
    assert json.loads(run(*data, "--verbatim", tmp_path / "more", "--json"))["beside"]["related"][0]["bm25"] == pytest.approx(
        answer["related"][0]["bm25"]
    )
    sets = ("--set", f"a={data_file}", "--verbatim", "-k", 2, "-o", tmp_path / "study")
    assert "copied" in run("study", store, *sets)
    refused = run("query", store, "--text", "a", "--url", "http://x", "--verbatim", tmp_path / "words", status=2)
    assert "--verbatim with --url" in refused
    assert "--verbatim with --redacted" in run("serve", store, "--redacted", "--verbatim", tmp_path / "w", status=2)


def test_the_service_shows_what_is_copied(tmp_path, asked):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from whence.serve.app import create_app
    from whence.serve.config import ServeConfig
    from whence.serve.hosted_store import HostedStore

    task, _, store, _ = asked
    hosted = replace(HostedStore.load("store", store, task), words_folder=tmp_path / "words")
    body = {"prompt": "rain", "completion": " falls on the old roof", "k": 3}
    for redacted in (False, True):
        with TestClient(
            create_app([hosted], ServeConfig(log=":memory:", redacted=redacted)), base_url="http://127.0.0.1"
        ) as client:
            answer = client.post("/v1/stores/store/attribute", json=body).json()
            again = client.get(f"/v1/answers/{answer['id']}").json()
        assert ("beside" in answer) is not redacted
        if not redacted:
            assert answer["beside"]["spans"][0]["words"] == 5 and again["beside"] == answer["beside"]
            rows = {hit["row"] for side in ("proponents", "opponents") for hit in answer[side]}
            assert {one["row"] for one in answer["beside"]["hits"]} == rows


def test_the_page_in_docs_is_true(run, reader):
    """Its Python as it stands, and its commands, with the tiny model and data where the reader's own would be."""
    for name in ("facts.jsonl", "code.jsonl"):
        (reader / name).symlink_to("train.jsonl")
    run("build", "path/to/model", "train.jsonl", "-o", "store")
    for words in page_commands("docs/verbatim.md", 3):
        words = ["a cat" if "France" in word else " sat" if word == " Paris" else word for word in words]
        run(*words)
    assert run_blocks("docs/verbatim.md", 1)["both"].beside[0].spans[0].words == 5


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    printed = run_example("verbatim/python_docs.py", tmp_path, "--documents", "300")
    assert "trained on" in printed and (tmp_path / "why.html").exists()

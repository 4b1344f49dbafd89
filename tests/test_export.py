"""Rows for engines that exist: the same vectors, whose inner products are scores, and the same answers where the index is exact."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from tests.settings import QUIET
from tests.test_store import edit_json, make_records, make_task
from whence.errors import BadInput, NonFinite, StoreMismatch, UnknownOption
from whence.pipeline import export, query_vectors
from whence.pipeline.stored import export as export_module
from whence.pipeline.stored.indexed import indexed_top, open_index
from whence.pipeline.stored.prepared import PreparedStore
from whence.pipeline.stored.row_vectors import vectors_of
from whence.settings import Indexed
from whence.store import delete_rows, open_store

FIXED = {"rows_per_shard": 8, "batch_positions": 64}
METHODS = {
    "aligned": {"method": "aligned", "rank": 5},
    "wide": {"method": "aligned", "rank": 6, "dtype": "float64"},
    "logra": {"method": "logra", "rank": 4, "dtype": "float32"},
    "bytes": {"method": "grad-dot", "rank": 4, "dtype": "int8"},
    "grad-cos": {"method": "grad-cos", "rank": 4},
    "trak": {"method": "trak", "rank": 32},
}
QUERIES = make_records(3, first=60)
ENGINES = {"faiss": "faiss", "lance": "lance", "parquet": "pyarrow"}


def needs(*engines):
    for engine in engines:
        pytest.importorskip(ENGINES[engine])


def records():
    """Some documents three times over, so that scores are tied."""
    some = make_records(30)
    return [*some, *({**record, "id": f"{record['id']}-{again}"} for again in range(2) for record in some[:12])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder_of = {name: tmp_path_factory.mktemp("stores") / name for name in METHODS}
    for name, options in METHODS.items():
        whence.build(make_task(), records(), folder_of[name], config=whence.BuildConfig(**options, **FIXED), runtime=QUIET)
        delete_rows(folder_of[name], ["r3", "r5-1"])
    return folder_of


def read(folder, engine):
    """Rows, ids, sources, vectors and texts of an export, by the engine's own reader."""
    if engine == "faiss":
        import faiss

        index = faiss.read_index(str(folder / "rows.faiss"))
        lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text("utf-8").split("\n")[:-1]]
        return {name: [line.get(name) for line in lines] for name in ("row", "id", "source", "text")} | {
            "vector": index.reconstruct_n(0, index.ntotal)
        }
    if engine == "parquet":
        from pyarrow import parquet

        table = parquet.read_table(folder / "rows.parquet")
    else:
        import lance

        table = lance.dataset(str(folder / "rows.lance")).to_table()
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "vector"}
    return columns | {"vector": np.stack(table["vector"].to_numpy(zero_copy_only=False))}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inner_products_of_vectors_are_scores(folders, tmp_path, name, engine, dtype):
    needs(engine)
    store = open_store(folders[name])
    exported = export(store, tmp_path / "out", to=engine, dtype=dtype, texts=True, quiet=True)
    columns = read(tmp_path / "out", engine)
    assert columns["id"] == list(store.ids()) and columns["row"] == list(range(len(store))) == list(range(exported.rows))
    assert columns["text"] == [example["text"] for example in store.examples()] and set(columns["source"]) == {"dïce"}
    wanted = whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores.double()
    vectors = query_vectors(store, make_task(), QUERIES, quiet=True).double()
    found = vectors @ torch.from_numpy(columns["vector"].astype(np.float64)).T
    rounding = (2.0**-11 if dtype == "float16" else 2.0**-23) * exported.width**0.5
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=8 * rounding * float(vectors.norm(dim=1).max()) * exported.largest_norm
    )


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("engine", ["faiss", "lance"])
@pytest.mark.parametrize("name", METHODS)
def test_an_exact_index_answers_as_a_scan(folders, tmp_path_factory, name, engine, data):
    needs(engine)
    folder, store = tmp_path_factory.mktemp("exports") / "out", open_store(folders[name])
    export(store, folder, to=engine, dtype=data.draw(st.sampled_from(["float32", "float16"])), quiet=True)
    options = {"k": data.draw(st.sampled_from([1, 2, 5, 70])), "runtime": QUIET}
    with pytest.MonkeyPatch.context() as patch:
        # Few at first, so that more have to be asked for.
        patch.setattr("whence.pipeline.stored.indexed._MARGIN", data.draw(st.integers(0, 4)))
        hits = whence.query(Indexed(store=store, index=folder), make_task(), QUERIES, **options)
    scanned = whence.query(store, make_task(), QUERIES, **options)
    assert hits.notes[: len(scanned.notes)] == scanned.notes and len(hits.notes) == len(scanned.notes) + 1
    assert hits.notes[-1].startswith("hits were looked for in the ") and "finds all that a scan does" in hits.notes[-1]
    assert (hits.num_examples, hits.method, hits.unit, hits.stage) == (52, scanned.method, scanned.unit, "scan")
    scores_QN = whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores
    same = {"rel": 1e-10, "abs": 1e-15} if scores_QN.dtype == torch.float64 else {"rel": 1e-5, "abs": 1e-8}
    for mine, theirs in ((hits.proponents, scanned.proponents), (hits.opponents, scanned.opponents)):
        for query, (some, others) in enumerate(zip(mine, theirs, strict=True)):
            # Copies of a document are tied but for rounding: any of them may come first, each with its own score.
            assert [hit.score for hit in some] == pytest.approx([hit.score for hit in others], **same)
            assert [float(scores_QN[query, hit.row]) for hit in some] == pytest.approx([hit.score for hit in some], **same)
            assert len({hit.row for hit in some}) == len(some) and [hit.id for hit in some] == [
                store.ids()[hit.row] for hit in some
            ]


def test_an_approximate_index_says_so(folders, tmp_path):
    needs("faiss")
    store = open_store(folders["aligned"])
    export(store, tmp_path / "out", to="faiss", factory="IVF8,Flat", quiet=True)
    hits = whence.query(Indexed(store=store, index=tmp_path / "out"), make_task(), QUERIES, k=60, runtime=QUIET)
    assert any(note.startswith("approximate index: hits are among the rows that the FAISS index") for note in hits.notes)
    scores_QN = whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores
    found = [hit for side in (hits.proponents, hits.opponents) for hit in side[0]]
    assert 0 < len(found) < len(store)
    for hit in found:
        assert hit.score == pytest.approx(float(scores_QN[0, hit.row]), rel=1e-5) and hit.id == store.ids()[hit.row]


def test_a_lance_table_with_an_index_or_fewer_rows_is_approximate(folders, tmp_path):
    needs("lance")
    import lance

    store = open_store(folders["aligned"])
    export(store, tmp_path / "out", to="lance", quiet=True)
    table = lance.dataset(str(tmp_path / "out" / "rows.lance"))
    table.create_index("vector", "IVF_FLAT", num_partitions=2, metric="dot")
    hits = whence.query(Indexed(store=store, index=tmp_path / "out"), make_task(), QUERIES, k=60, runtime=QUIET)
    assert any(note.startswith("approximate index:") for note in hits.notes)
    table.drop_index("vector_idx")
    table.delete("id = 'r1'")
    hits = whence.query(Indexed(store=store, index=tmp_path / "out"), make_task(), QUERIES, k=60, runtime=QUIET)
    assert any(note.startswith("approximate index:") for note in hits.notes)
    assert "r1" not in {hit.id for side in (hits.proponents, hits.opponents) for some in side for hit in some}


def test_a_shortlist_from_an_index_is_scored_exactly(folders, tmp_path):
    needs("faiss")
    store = open_store(folders["aligned"])
    export(store, tmp_path / "out", to="faiss", quiet=True)
    rerank = whence.Rerank(train=records(), shortlist=8)
    indexed, scanned = (
        whence.query(where, make_task(), QUERIES, k=3, rerank=rerank, runtime=QUIET)
        for where in (Indexed(store=store, index=tmp_path / "out"), store)
    )
    assert indexed.proponents == scanned.proponents and indexed.opponents == scanned.opponents and indexed.stage == "exact"


# What is refused


def test_methods_whose_rows_are_no_vectors_are_refused(tmp_path):
    for method, options, why in (
        ("lorif", {"factor_rank": 1, "rank": 4}, "rows are factors of matrices"),
        ("trackstar", {"rank": 4}, "rows are divided by norms that depend on the queries"),
    ):
        config = whence.BuildConfig(method=method, **options, **FIXED)
        store = whence.build(make_task(), make_records(6), tmp_path / method, config=config, runtime=QUIET)
        with pytest.raises(
            BadInput, match=rf"found vectors of a store of {method} in .*, whose {why}.*; needed rows whose inner product"
        ):
            export(store, tmp_path / "out", to="parquet", quiet=True)
        with pytest.raises(BadInput, match=why):
            query_vectors(store, make_task(), QUERIES, quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_refused(folders, tmp_path, monkeypatch):
    needs("faiss", "parquet")
    store = open_store(folders["aligned"])
    for options, error, text in (
        ({"to": "csv"}, UnknownOption, "found to='csv'; needed one of: parquet, lance, faiss"),
        ({"to": "faiss", "dtype": "int8"}, UnknownOption, "found dtype='int8'; needed one of: float32, float16"),
        ({"to": "parquet", "factory": "Flat"}, BadInput, "found factory='Flat' for parquet"),
        ({"to": "faiss", "factory": "Nothing"}, BadInput, r"found factory='Nothing' for 52 rows of .*try such as 'Flat'"),
        ({"to": "faiss", "factory": "IVF4096,Flat"}, BadInput, "found factory='IVF4096,Flat' for 52 rows"),
    ):
        with pytest.raises(error, match=text):
            export(store, tmp_path / "out", quiet=True, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(BadInput, match="found something at .*full already; needed a new folder"):
        export(store, tmp_path / "full", to="parquet", quiet=True)
    monkeypatch.setattr(export_module, "vectors_in", lambda *_: torch.full((8, 5), 1e30))
    monkeypatch.setattr(export_module, "row_vectors", lambda store: iter([torch.full((7, 5), 1e30)]))
    with pytest.raises(NonFinite, match="found a row of 'r0' that float16 cannot hold; needed a type of wide enough range"):
        export(store, tmp_path / "out", to="parquet", dtype="float16", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BadInput, match=r"found no package faiss; .*pip install 'whence-tda\[export\]'"):
        export(store, tmp_path / "out", to="faiss", quiet=True)


def test_an_index_of_another_store_is_refused(folders, tmp_path):
    needs("faiss", "parquet")
    folder = shutil.copytree(folders["aligned"], tmp_path / "s")
    export(folder, tmp_path / "out", to="faiss", quiet=True)
    export(folder, tmp_path / "table", to="parquet", quiet=True)

    def ask(index, **more):
        return whence.query(
            Indexed(store=folder, index=index), make_task(), QUERIES, runtime=whence.Runtime(quiet=True, **more)
        )

    with pytest.raises(BadInput, match="found no export in .*; needed a folder made by `whence export`"):
        ask(tmp_path)
    with pytest.raises(BadInput, match="found an export to parquet in .*; needed one to faiss or lance"):
        ask(tmp_path / "table")
    with whence.workers.Workers(1) as workers, pytest.raises(BadInput, match="found an index for workers or several ranks"):
        ask(tmp_path / "out", workers=workers)
    assert ask(tmp_path / "out").num_examples == 52
    delete_rows(folder, ["r7"])
    with pytest.raises(StoreMismatch, match="made of another store, or before rows were added or deleted; .*export it again"):
        ask(tmp_path / "out")
    content = bytearray((tmp_path / "out" / "rows.faiss").read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / "rows.faiss").write_bytes(content)
    with pytest.raises(BadInput, match=r"rows.faiss \(it is not what was exported\)"):
        whence.query(Indexed(store=folders["aligned"], index=tmp_path / "out"), make_task(), QUERIES, runtime=QUIET)
    shutil.copytree(tmp_path / "table", tmp_path / "later")
    edit_json(tmp_path / "later" / "whence.json", format="whence export 2")
    with pytest.raises(Exception, match=r"whence.json|of format"):
        ask(tmp_path / "later")


def test_the_command_line(run, model_folder, data_file, tmp_path):
    needs("faiss")
    run("build", model_folder, data_file, "-o", tmp_path / "s", "--method", "aligned")
    done = json.loads(run("export", tmp_path / "s", tmp_path / "out", "--to", "faiss", "--texts"))
    assert (done["rows"], done["factory"], done["folder"]) == (12, "Flat", str(tmp_path / "out"))
    ask = ("query", tmp_path / "s", "--text", "a cat sat", "-k", "3", "--json")
    indexed, scanned = json.loads(run(*ask, "--index", tmp_path / "out")), json.loads(run(*ask))
    for side in ("proponents", "opponents"):
        assert [hit["id"] for hit in indexed["queries"][0][side]] == [hit["id"] for hit in scanned["queries"][0][side]]
    assert "found --index with --url" in run(*ask, "--index", tmp_path / "out", "--url", "http://127.0.0.1:1", status=2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 8))
def test_more_candidates_are_taken_until_no_other_row_can_be_among_the_best(folders, tmp_path_factory, seed, k):
    """Of an engine that is off by as much as it may be."""
    needs("faiss")
    folder, store = tmp_path_factory.mktemp("exports") / "out", open_store(folders["logra"])
    export(store, folder, to="faiss", quiet=True)
    prepared = PreparedStore.load(store, make_task()).prepare(make_task().prepare(QUERIES), quiet=True)
    index = open_index(folder, store)
    index = replace(index, exported=replace(index.exported, largest_norm=3e4 * index.exported.largest_norm))
    vectors_QD = vectors_of(prepared)
    scores_QN = prepared.scores(range(len(QUERIES)), range(len(store)))
    generator = torch.Generator().manual_seed(seed)
    slack = min(index.slack(vector_D) for vector_D in vectors_QD)
    noise_QN = slack * (2 * torch.rand(scores_QN.shape, generator=generator) - 1)

    def search(asked_QD, count):
        found = []
        for vector_D in torch.from_numpy(asked_QD):
            query = int(
                (vectors_QD.float() - vector_D).norm(dim=1).minimum((vectors_QD.float() + vector_D).norm(dim=1)).argmin()
            )
            sign = 1 if float(vector_D @ vectors_QD[query].float()) > 0 else -1
            found.append((sign * scores_QN[query] + noise_QN[query]).topk(count).indices.numpy())
        return np.stack(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whence.pipeline.stored.indexed._MARGIN", 1)
        high, low = indexed_top(prepared, replace(index, search=search), k, quiet=True)
    assert float(slack) > float(scores_QN.std()) / 100
    torch.testing.assert_close(high.scores_QK, scores_QN.topk(k).values, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(low.scores_QK, scores_QN.topk(k, largest=False).values, rtol=1e-5, atol=1e-9)

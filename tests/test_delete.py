"""Deleted rows: nothing that reads a store shows, scores or counts them, and what says so cannot be lost or altered without a word."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from tests.settings import QUIET
from tests.test_store import contents, edit_json, flip, make_records, make_task, reseal
from whence.clusters.directions import directions
from whence.distributed import Ranks
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.store import Blueprint, delete_rows, deleted_since, name_now, open_store, verify_store

METHODS = {
    "aligned": {},
    "signs": {"method": "aligned", "rank": 6, "dtype": "int1"},
    "lorif": {"method": "lorif", "factor_rank": 1, "rank": 4},
    "bytes": {"method": "logra", "rank": 4, "dtype": "int8"},
    "trak": {"method": "trak", "rank": 32},
    "trackstar": {"method": "trackstar", "rank": 4},
    "grad-cos": {"method": "grad-cos", "rank": 4},
}
ROWS, MORE = 14, 5
QUERIES = make_records(3, first=40)
FIXED = {"rows_per_shard": 4, "batch_positions": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One store of each method, of two datasets, in shards of four rows."""
    made_by_method = {}
    for name, options in METHODS.items():
        folder = made_by_method[name] = tmp_path_factory.mktemp("stores") / name
        whence.build(
            make_task(),
            make_records(ROWS),
            folder,
            config=whence.BuildConfig(**{"method": "aligned", **options}, **FIXED),
            runtime=QUIET,
        )
        records = make_records(MORE, first=ROWS)
        whence.build(
            make_task(),
            records,
            folder,
            append=True,
            config=whence.BuildConfig(**{"method": "aligned", **options}, **FIXED),
            runtime=QUIET,
        )
    return made_by_method


@pytest.fixture
def copied(folders, tmp_path):
    def copy(name="lorif"):
        return shutil.copytree(folders[name], tmp_path / name)

    return copy


def table(store):
    return whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores


# Whatever is deleted


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", METHODS)
def test_what_is_left_is_read_as_before(folders, tmp_path_factory, name, data):
    folder = shutil.copytree(folders[name], tmp_path_factory.mktemp("copies") / "s")
    whole = open_store(folder)
    ids, before, count = whole.ids(), table(whole), ROWS + MORE
    rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    for row in sorted(rows):
        if data.draw(st.booleans()):
            delete_rows(folder, [ids[row]])
    store = delete_rows(folder, [ids[row] for row in rows])
    left = [row for row in range(count) if row not in rows]
    assert store.ids() == tuple(ids[row] for row in left) and len(store) == len(left) and store.num_deleted == len(rows)
    assert store.examples_of(range(len(left))) == {at: whole.example(row) for at, row in enumerate(left)}
    assert sum(rows for _, rows in store.datasets()) == len(left) and verify_store(store) == []
    # Cosines have no number of examples in them; every other score is divided by it.
    scale = 1 if whence.methods.METHODS[store.blueprint.method].cosine else count / len(left)
    after = table(store)
    torch.testing.assert_close(after, before[:, left] * scale, rtol=1e-5, atol=1e-6 * float(before.abs().max()) * scale)
    shards = {seal.number: tensors for seal, (_, tensors) in zip(store.seals, store.shards(), strict=True)}
    assert sum(len(next(iter(shard.values()))) for shard in shards.values()) == len(left)
    some = left[:: data.draw(st.integers(1, 3))]
    parts = [list(place.rows(numbers)) for place, numbers in ((store, [left.index(row) for row in some]), (whole, some))]
    for column in parts[0][0]:
        assert torch.equal(*(torch.cat([part[column] for part in side]) for side in parts))


@pytest.mark.parametrize("name", ["aligned", "trackstar", "trak"])
def test_answers_are_those_of_the_rows_that_are_left(copied, name):
    folder = copied(name)
    ids = open_store(folder).ids()
    store = delete_rows(folder, [ids[row] for row in (0, 4, 5, 6, 7, 9, 16)])  # all of the second shard, and both datasets
    hits = whence.query(store, make_task(), QUERIES, k=30, runtime=QUIET)
    scores_QN = table(store)
    for query, sides in enumerate(zip(hits.proponents, hits.opponents, strict=True)):
        for hit in (*sides[0], *sides[1]):
            assert hit.id == store.ids()[hit.row] and hit.text == f"throw {hit.id[1:]} \u2028"
            assert hit.score == pytest.approx(float(scores_QN[query, hit.row]), rel=1e-6)
        assert sum(map(len, sides)) == int((scores_QN[query] != 0).sum())
    assert hits.num_examples == 12 and any(note.startswith("7 deleted documents are left out; ") for note in hits.notes)
    with whence.workers.Workers(2) as workers:
        again = whence.query(folder, make_task(), QUERIES, k=30, runtime=whence.Runtime(workers=workers, quiet=True))
    assert again.to_dict() == hits.to_dict()


def test_everything_that_goes_through_rows_leaves_them_out(copied):
    folder = copied("aligned")
    store = delete_rows(folder, ["r1", "r4", "r5", "r6", "r7"])
    assert directions(store).shape[0] == len(store) == 14
    assert not {"r1", "r5"} & {
        name for pair in whence.select.near_duplicates(store, cosine=0.3, quiet=True).items() for name in pair
    }
    whence.study.study(make_task(), folder, {"a": QUERIES}, folder.with_name("study"), runtime=QUIET)
    shown = (folder.with_name("study") / "study.json").read_text()
    assert '"r1"' not in shown and '"r5"' not in shown
    delete_rows(folder, ["r2"])
    with pytest.raises(StoreMismatch, match="found scores with another documents"):  # whose scores are of other rows
        whence.study.study(make_task(), folder, {"a": QUERIES}, folder.with_name("study"), runtime=QUIET)


def test_exact_scores_of_a_shortlist_are_those_of_the_documents_that_are_left(copied):
    store = delete_rows(copied("aligned"), ["r2", "r3", "r15"])
    records = [*make_records(ROWS), *make_records(MORE, first=ROWS)]
    hits = whence.query(store, make_task(), QUERIES, k=3, rerank=whence.Rerank(train=records), runtime=QUIET)
    assert not {"r2", "r3", "r15"} & {hit.id for side in (hits.proponents, hits.opponents) for some in side for hit in some}
    left = [record for record in records if record["id"] not in ("r2", "r3", "r15")]
    with pytest.raises(
        StoreMismatch, match=r"found training data without the 2 examples that were deleted .*pass the whole data"
    ):
        whence.query(store, make_task(), QUERIES, rerank=whence.Rerank(train=left), runtime=QUIET)
    changed = [{**record, "label": (record["label"] + (record["id"] == "r9")) % 3} for record in records]
    with pytest.raises(StoreMismatch, match="found the ids but not the contents of rows 0 to 11"):
        whence.query(store, make_task(), QUERIES, rerank=whence.Rerank(train=changed), runtime=QUIET)
    whole = whence.build(
        make_task(), records, store.folder.with_name("whole"), config=whence.BuildConfig(rank=3, **FIXED), runtime=QUIET
    )
    with pytest.raises(StoreMismatch, match="with the same rows deleted"):
        whence.query(store, make_task(), QUERIES, rerank=whence.Rerank(by=whole), runtime=QUIET)


# What is asked for


def test_deleting_again_changes_nothing(copied):
    folder = copied()
    delete_rows(folder, ["r1", "r15"])
    before = contents(folder)
    assert delete_rows(folder, ["r15"]).num_deleted == 2 and contents(folder) == before
    delete_rows(folder, ["r15", "r0"])
    assert sorted(name for name in contents(folder) if name.startswith("deleted")) == ["deleted-00002.json"]


def test_what_cannot_be_deleted_is_refused(copied):
    folder = copied()
    before = contents(folder)
    for ids, text in (
        (
            ["r1", "nobody"],
            r"found 1 ids that no row of .* has: 'nobody'; needed ids of examples in the store; .*nothing was deleted",
        ),
        ([f"x{number}" for number in range(9)], r"found 9 ids that .* and more; "),
        ("r1", r"found the ids 'r1', one text; needed a list of ids; do this: pass \['r1'\]"),
        ([], "found no id; needed ids of the examples to delete"),
        ([f"r{number}" for number in range(ROWS + MORE)], r"found all 19 rows of .* to delete; needed a row that is left"),
    ):
        with pytest.raises(BadInput, match=text):
            delete_rows(folder, ids)
    assert contents(folder) == before
    with pytest.raises(BadInput, match="found no store at"):
        delete_rows(folder / "nowhere", ["r1"])


def test_a_deleted_id_may_come_again(copied):
    folder = copied()
    delete_rows(folder, ["r1"])
    new = [{**make_records(1, first=50)[0], "id": "r1", "text": "another"}]
    store = whence.build(
        make_task(),
        new,
        folder,
        append=True,
        config=whence.BuildConfig(method="lorif", factor_rank=1, rank=4, **FIXED),
        runtime=QUIET,
    )
    assert store.example(len(store) - 1)["text"] == "another" and verify_store(store) == []
    assert delete_rows(folder, ["r1"]).num_deleted == 2
    with pytest.raises(StoreMismatch, match="the id 'r2' in both"):
        again = [{**new[0], "id": "r2"}]
        whence.build(
            make_task(),
            again,
            folder,
            append=True,
            config=whence.BuildConfig(method="lorif", factor_rank=1, rank=4, **FIXED),
            runtime=QUIET,
        )


# What must not be lost


def test_earlier_versions_refuse_a_store_with_deleted_rows(copied):
    folder = copied()
    digest = Blueprint.read(folder).digest()
    delete_rows(folder, ["r1"])
    content = json.loads((folder / "blueprint.json").read_text())
    assert content["format"] == 3  # which is neither of the two that they know
    assert Blueprint.read(folder).digest() == digest == json.loads((folder / "manifest.json").read_text())["blueprint"]


def _without_a_row(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "rows": {"0": [1]}, "ids": ["r1"]}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (_without_a_row, "its checksum is not the sealed one"),
        (flip, "its checksum is not the sealed one"),
    ],
)
def test_a_lost_or_altered_list_is_refused_by_all(copied, run, damage, text):
    folder = copied()
    delete_rows(folder, ["r1", "r2"])
    damage(folder / "deleted-00001.json")
    for look in (
        lambda: open_store(folder),
        lambda: delete_rows(folder, ["r3"]),
        lambda: whence.build(
            make_task(),
            make_records(ROWS),
            folder,
            append=True,
            config=whence.BuildConfig(method="lorif", factor_rank=1, rank=4, **FIXED),
            runtime=QUIET,
        ),
    ):
        with pytest.raises(StoreCorrupt, match=rf"{text}\).*restore it from a copy, or build another store without"):
            look()
    assert text in run("verify", folder, status=2)


def test_a_manifest_that_forgets_the_list_is_found(copied):
    folder = copied()
    delete_rows(folder, ["r1", "r2"])
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["deleted-00001.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = verify_store(open_store(folder))
    assert "does not name this list of deleted rows; run the same `whence delete` again" in fault
    (folder / "deleted-00001.json").unlink()
    with pytest.raises(StoreCorrupt, match=r"from which rows were deleted, without the list of them; .*restore the folder"):
        open_store(folder)


def test_verify_holds_the_list_against_the_shards(copied):
    folder = copied()
    delete_rows(folder, ["r1"])
    edit_json(folder / "blueprint.json", format=1)
    (fault,) = verify_store(open_store(folder))
    assert "its format is not 3, though rows were deleted" in fault
    edit_json(folder / "blueprint.json", format=3)
    reseal(folder, 0, lambda tensors, lines: (tensors, lines.replace(b'"r1"', b'"q1"')))
    faults = verify_store(open_store(folder))
    assert any("it names other ids than the rows of shard 0" in fault for fault in faults)


def test_a_build_that_goes_on_keeps_what_was_deleted(copied):
    folder, config = copied(), whence.BuildConfig(method="lorif", factor_rank=1, rank=4, **FIXED)
    delete_rows(folder, ["r1", "r2"])
    for spoil in (
        lambda: (folder / "manifest.json").unlink(),
        lambda: (folder / "curvature.safetensors").unlink(),
        lambda: flip(folder / "shards/00001.safetensors"),
        lambda: [path.unlink() for path in (folder / "shards").glob("00000.*")],
    ):
        spoil()
        store = whence.build(make_task(), make_records(ROWS), folder, append=True, config=config, runtime=QUIET)
        assert store.num_deleted == 2 and "r1" not in store.ids() and verify_store(store) == []
    store = whence.build(make_task(), make_records(3, first=30), folder, append=True, config=config, runtime=QUIET)
    assert len(store) == ROWS + MORE + 1 and "r2" not in store.ids() and verify_store(store) == []
    # The curvature is that of the rows that are left.
    left = [*make_records(ROWS), *make_records(MORE, first=ROWS), *make_records(3, first=30)]
    left = [record for record in left if record["id"] not in ("r1", "r2")]
    fresh = whence.build(make_task(), left, folder.with_name("fresh"), config=config, runtime=QUIET)
    torch.testing.assert_close(
        store.file(name_now(store.files, "curvature.safetensors"))["traces"],
        fresh.file("curvature.safetensors")["traces"],
        rtol=1e-6,
        atol=0,
    )


def test_ranks_read_the_same_rows(copied):
    store = delete_rows(copied(), ["r0", "r4", "r5", "r6", "r7"])
    parts = [[start for start, _ in store.shards(ranks=Ranks(rank, 3))] for rank in range(3)]
    assert [start for part in parts for start in part] == store.starts == [0, 3, 7, 9, 13]


# What people see


def test_the_command_line_deletes_and_tells(run, model_folder, data_file, tmp_path):
    folder, names = tmp_path / "s", tmp_path / "names"
    run("build", model_folder, data_file, "-o", folder, "--method", "aligned")
    names.write_text("t2\nt3\r\n\n")
    done = json.loads(run("delete", folder, "--ids", "t0", "t1", "--ids-file", names))
    assert done == {"store": str(folder), "rows": 8, "deleted": 4, "now": 4}
    assert json.loads(run("delete", folder, "--ids", "t1", "--ids", "t4"))["now"] == 1
    assert "5 more rows are deleted" in run("verify", folder)
    assert "deleted  5" in run("inspect", folder) and json.loads(run("inspect", folder, "--json"))["deleted"] == 5
    found = json.loads(run("query", folder, "--text", "a cat sat", "-k", "20", "--tokens", "--json"))
    ids = {hit["id"] for query in found["queries"] for side in ("proponents", "opponents") for hit in query[side]}
    assert ids and not ids & {"t0", "t1", "t2", "t3", "t4"} and found["num_examples"] == 7
    assert any("5 deleted documents are left out" in note for note in found["notes"])
    # A language model's texts tell by themselves that they are what the store was built from.
    left = tmp_path / "left.jsonl"
    left.write_text("".join(line for line in data_file.read_text().splitlines(True) if json.loads(line)["id"] in ids))
    exact = json.loads(run("query", folder, "--text", "a cat sat", "--rerank", "exact", "--train", left, "--json"))
    assert {hit["id"] for hit in exact["queries"][0]["proponents"]} <= ids
    assert "found 1 ids that no row of" in run("delete", folder, "--ids", "t99", status=2)
    assert "found no ids in" in run("delete", folder, "--ids-file", tmp_path / "none", status=2)


def test_a_service_does_not_show_what_was_deleted_since(copied):
    from whence.serve.health import Health

    folder = copied("aligned")
    store = open_store(folder)
    assert not deleted_since(store) and Health().unreadable({"s": store}) == []
    delete_rows(folder, ["r1"])
    assert deleted_since(store) and Health().unreadable({"s": store}) == ["s"]
    assert not deleted_since(open_store(folder))

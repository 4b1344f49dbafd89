"""A store learned again from what is left in it is the store that a build from these documents makes; until then the old one is read."""

import itertools
import json
import os
import shutil
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
import whence.pipeline.stored.refit as refit_module
from tests.settings import QUIET
from tests.test_store import contents, edit_json, make_records, make_task
from whence.errors import BadInput, StoreChanged, StoreCorrupt, StoreMismatch
from whence.pipeline import refit
from whence.store import delete_rows, open_store, verify_store
from whence.store import exchange as exchange_module

FIXED = {"rows_per_shard": 4, "batch_positions": 64}
METHODS = {
    "aligned": {"axes_examples": 6, "seed": 3},
    "bytes": {"bytes_per_example": 16, "relative_damping": 0.3, "shared_bytes": "1m"},
    "logra-pca": {"method": "logra-pca", "rank": 3, "axes_examples": 5, "dtype": "int8"},
    "trak": {"method": "trak", "rank": 32, "projection": "sparse"},
    "lorif": {"method": "lorif", "factor_rank": 1, "rank": 4, "curvature_rank": 5},
}
ROWS, MORE = 14, 5


def build(folder, name="aligned", records=None, *, append=False, **more):
    config = whence.BuildConfig(**METHODS[name], **FIXED, **more)
    return whence.build(make_task(), records or make_records(ROWS), folder, append=append, config=config, runtime=QUIET)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A grown store of each method."""
    made_by_method = {}
    for name in METHODS:
        folder = made_by_method[name] = tmp_path_factory.mktemp("stores") / name
        build(folder, name)
        build(folder, name, make_records(MORE, first=ROWS), append=True)
    return made_by_method


@pytest.fixture
def grown(folders, tmp_path):
    return shutil.copytree(folders["aligned"], tmp_path / "s")


def everything():
    return make_records(ROWS + MORE)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", METHODS)
def test_it_has_the_bytes_of_a_fresh_build(folders, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("refits")
    shutil.copytree(folders[name], folder / "s")
    gone = data.draw(st.sets(st.integers(0, ROWS + MORE - 1), max_size=8))
    if gone:
        delete_rows(folder / "s", [f"r{row}" for row in gone])
    order = data.draw(st.permutations(everything()))
    store = refit(folder / "s", make_task(), order, quiet=True)
    left = [record for record in everything() if record["id"] not in {f"r{row}" for row in gone}]
    build(folder / "fresh", name, left)
    assert contents(folder / "s") == contents(folder / "fresh")
    assert verify_store(store) == [] and store.num_deleted == 0 and sorted(os.listdir(folder)) == ["fresh", "s"]


@pytest.mark.parametrize("name", METHODS)
def test_stores_of_versions_that_recorded_no_settings(folders, tmp_path, name):
    """What the rows say of the settings gives rows of the same size and kind."""
    folder = shutil.copytree(folders[name], tmp_path / "s")
    task_record = json.loads((folder / "blueprint.json").read_text())["task"]
    del task_record["build"]
    edit_json(folder / "blueprint.json", task=task_record)
    edit_json(folder / "manifest.json", blueprint=whence.store.Blueprint.read(folder).digest())
    before = open_store(folder).blueprint
    after = refit(folder, make_task(), everything(), quiet=True).blueprint
    for field in ("method", "projection", "factor_rank", "curvature_rank", "seed", "dtype", "rows_per_shard", "autocast"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.codec().row_bytes() == before.codec().row_bytes() or name in ("aligned", "bytes")


def test_what_was_learned_from_everything_is_not_learned_again(tmp_path, capsys):
    build(tmp_path / "s")
    before = contents(tmp_path / "s")
    refit(tmp_path / "s", make_task(), everything())
    assert "none was deleted: nothing to do" in capsys.readouterr().err
    assert contents(tmp_path / "s") == before and os.listdir(tmp_path) == ["s"]


def test_data_that_is_missing_or_another_is_refused(grown):
    before = contents(grown)
    some = everything()
    for records, text in (
        (
            some[1:],
            r"found training data of 18 examples without 'r0'; needed all 19 that .* was built from; do this: pass the same data",
        ),
        ([{**some[0], "text": "another"}, *some[1:]], "found another text or length of the training example 'r0'"),
        ([{**some[0], "label": 2}, *some[1:]], "found the ids but not the contents of rows 0 to 13 in the training data"),
    ):
        with pytest.raises(StoreMismatch, match=text):
            refit(grown, make_task(), records, quiet=True)
    with pytest.raises(StoreMismatch, match="found a store of weights"):
        refit(grown, make_task(seed=1), some, quiet=True)
    assert contents(grown) == before and os.listdir(grown.parent) == ["s"]


def test_other_data_stays_out(grown, capsys):
    refit(grown, make_task(), [*everything(), *make_records(2, first=30)])
    assert "note: 2 examples of the data are not in" in capsys.readouterr().err
    assert len(open_store(grown)) == ROWS + MORE


def test_stores_that_cannot_be_made_again_are_refused(grown, monkeypatch):
    with pytest.raises(BadInput, match="found no store at"):
        refit(grown / "nowhere", make_task(), everything(), quiet=True)
    monkeypatch.setattr(exchange_module, "exchange_folders", lambda left, right: (_ for _ in ()).throw(OSError(22, "no")))
    with pytest.raises(
        BadInput, match=r"found two folders in .* that cannot change places .*do this: build a new store into another"
    ):
        refit(grown, make_task(), everything(), quiet=True)
    blueprint = json.loads((grown / "blueprint.json").read_text())
    edit_json(grown / "blueprint.json", task={**blueprint["task"], "logged": "rows of their steps"})
    edit_json(grown / "manifest.json", blueprint=whence.store.Blueprint.read(grown).digest())
    with pytest.raises(BadInput, match="whose rows were logged while the model was trained"):
        refit(grown, make_task(), everything(), quiet=True)
    edit_json(grown / "blueprint.json", task={"kind": "classification", "build": {"rank": -3}})
    edit_json(grown / "manifest.json", blueprint=whence.store.Blueprint.read(grown).digest())
    with pytest.raises(StoreCorrupt, match="its settings are not those of a build: found rank=-3"):
        refit_module.settings_of(open_store(grown))


def test_a_store_in_an_object_store_is_refused():
    pytest.importorskip("upath")
    with pytest.raises(BadInput, match="found a refit of memory://store; needed a store on a disk"):
        refit("memory://store", make_task(), everything(), quiet=True)


# While it is made


def stopped_at(monkeypatch, name, action=None):
    """Stop a refit, or do something, right before it calls a function."""
    before = getattr(refit_module, name)

    def called(*arguments, **options):
        monkeypatch.setattr(refit_module, name, before)
        if action is None:
            raise KeyboardInterrupt
        action()
        return before(*arguments, **options)

    monkeypatch.setattr(refit_module, name, called)


def test_what_was_deleted_in_the_meantime_stays_deleted(grown, monkeypatch):
    stopped_at(monkeypatch, "_exchange", lambda: delete_rows(grown, ["r3", "r17"]))
    store = refit(grown, make_task(), everything(), quiet=True)
    assert store.num_deleted == 2 and not {"r3", "r17"} & set(store.ids()) and verify_store(store) == []
    assert len(store.datasets()) == 1


def test_what_was_added_in_the_meantime_is_not_lost(grown, monkeypatch):
    stopped_at(monkeypatch, "_exchange", lambda: build(grown, records=make_records(2, first=40), append=True))
    with pytest.raises(StoreChanged, match="added to while it was refit; .*run the refit again, with the added documents too"):
        refit(grown, make_task(), everything(), quiet=True)
    records = [*everything(), *make_records(2, first=40)]
    assert len(open_store(grown)) == len(records)
    assert len(refit(grown, make_task(), records, quiet=True).datasets()) == 1


def test_inspect_tells_of_an_unfinished_refit(grown, monkeypatch, run):
    assert json.loads(run("inspect", grown, "--json"))["unfinished_refit"] is None and ".refit" not in run("inspect", grown)
    with monkeypatch.context() as stopped:
        stopped_at(stopped, "_exchange")
        with pytest.raises(KeyboardInterrupt):
            refit(grown, make_task(), everything(), quiet=True)
    work = grown.with_name(".s.refit")
    size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    assert json.loads(run("inspect", grown, "--json"))["unfinished_refit"] == {"folder": str(work), "bytes": size}
    shown = run("inspect", grown)
    assert f"in {work} of an unfinished refit; `whence refit` goes on with it" in shown


@pytest.mark.parametrize("name", ["build", "_exchange", "exchange_folders"])
def test_a_stopped_refit_goes_on(grown, monkeypatch, name):
    before = contents(grown)
    stopped_at(monkeypatch, name)
    with pytest.raises(KeyboardInterrupt):
        refit(grown, make_task(), everything(), quiet=True)
    assert contents(grown) == before and verify_store(open_store(grown)) == []
    refit(grown, make_task(), everything(), quiet=True)
    build(grown.with_name("fresh"), records=everything())
    assert contents(grown) == contents(grown.with_name("fresh")) and sorted(os.listdir(grown.parent)) == ["fresh", "s"]


def test_a_refit_of_a_store_that_changed_since_begins_anew(grown, monkeypatch, capsys):
    stopped_at(monkeypatch, "_exchange")
    with pytest.raises(KeyboardInterrupt):
        refit(grown, make_task(), everything(), quiet=True)
    delete_rows(grown, ["r2"])
    assert "r2" not in refit(grown, make_task(), everything()).ids()
    assert "has changed since a refit of it was stopped: it begins anew" in capsys.readouterr().err


def test_whoever_opens_finds_the_old_store_or_the_new_one(grown):
    """Readers in a loop while folders change places many times."""
    other = grown.with_name("other")
    build(other, "trak")
    ends, lengths, troubles = threading.Event(), set(), []

    def look():
        while not ends.is_set():
            try:
                lengths.add(len(open_store(grown, check=False)))
            except Exception as error:  # noqa: BLE001
                troubles.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    deadline = time.monotonic() + 60
    for number in itertools.count():
        exchange_module.exchange_folders(grown, other)
        time.sleep(0.03)  # an exchange and back again would look like none
        if troubles or (number >= 30 and len(lengths) == 2) or time.monotonic() > deadline:
            break
    ends.set()
    reader.join()
    assert not troubles and lengths == {ROWS, ROWS + MORE}


def test_the_command_line(run, model_folder, data_file, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "a new cat"}\n')
    arguments = ["-o", tmp_path / "s", "--method", "aligned"]
    run("build", model_folder, data_file, *arguments)
    run("build", model_folder, more, *arguments, "--append")
    run("delete", tmp_path / "s", "--ids", "t0")
    assert "without 'new'" in run("refit", tmp_path / "s", status=2)
    done = json.loads(run("refit", tmp_path / "s", "--train", data_file, "--train", more))
    assert done["rows"] == 12 and done["store"] == str(tmp_path / "s")
    assert "12 rows in 1 shards, all as sealed" in run("verify", tmp_path / "s")
    assert json.loads(run("refit", tmp_path / "s"))["rows"] == 12  # the data is known now

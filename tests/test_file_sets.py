"""Files that belong together are all new or all as before, whenever the process that writes them ends."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tests.test_bank import assert_equal, made
from tests.test_select import table as planted
from whence.errors import BadInput, DiskFull, StoreCorrupt
from whence.evaluate import load_table, open_bank, random_subsets, save_bank, save_table
from whence.select.selection import Selection, load_selection
from whence.settings import SelectConfig
from whence.store.file_sets import array_chunks, new_folder, path_in_set, write_set

CHANGES = ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink")


class Ended(BaseException):
    """What a killed process does: nothing more."""


def endings(write, monkeypatch):
    """Write again and again, ended before the first change of a folder, the second, ... until it is done.

    Yields:
        After each ending.
    """
    for moment in range(1, 100):
        with monkeypatch.context() as patch:
            calls = iter(range(1, moment))
            for module, name in [(os, name) for name in CHANGES] + [(shutil, "rmtree")]:
                patch.setattr(module, name, _ending(getattr(module, name), calls))
            try:
                write()
                return
            except Ended:
                pass
        yield moment
    raise AssertionError("it never ends")


def _ending(function, calls):
    def called(*arguments, **keywords):
        # What would clean up after an error is not called in a process that was killed: it fails from then on.
        if next(calls, None) is None:
            raise Ended
        return function(*arguments, **keywords)

    return called


def old_and_new(tmp_path):
    masks = random_subsets(12, 6)
    banks = [made(tmp_path / f"bank {count}", masks[:count]) for count in (2, 6)]
    tables = [planted(torch.full((2, 12), float(value))) for value in (1, 2)]
    return banks, tables


def test_a_bank_that_grows_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    (old, new), _ = old_and_new(tmp_path)
    seen = set()
    for _ in endings(lambda: save_bank(new, tmp_path / "bank"), monkeypatch):
        if (tmp_path / "bank/bank.json").exists() or seen:
            found = open_bank(tmp_path / "bank")
            seen.add(len(found.masks_MN))
            assert_equal(found, old if len(found.masks_MN) == 2 else new)
        shutil.rmtree(tmp_path / "bank", ignore_errors=True)
        save_bank(old, tmp_path / "bank")
    assert seen == {2, 6}
    save_bank(new, tmp_path / "bank")
    assert_equal(open_bank(tmp_path / "bank"), new)
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == ["bank.json", "full.npy", "masks.npy", "values.npy"]


def test_a_table_that_is_written_over_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    _, (old, new) = old_and_new(tmp_path)
    save_table(old, tmp_path / "table")
    values = []
    for _ in endings(lambda: save_table(new, tmp_path / "table", origin={"models": ["m"]}), monkeypatch):
        found = load_table(tmp_path / "table")
        values.append(found.scores.unique().item())
    assert values == sorted(values) and set(values) == {1.0, 2.0}
    assert load_table(tmp_path / "table").scores.unique().item() == 2.0
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["scores.npy", "table.json"]


def test_scores_under_another_record_are_refused(tmp_path):
    _, (old, new) = old_and_new(tmp_path)
    save_table(old, tmp_path / "a")
    save_table(new, tmp_path / "b")
    shutil.copy(tmp_path / "b/scores.npy", tmp_path / "a/scores.npy")
    with pytest.raises(BadInput, match=r"scores.npy in .*a, which is not the file that was written with its record"):
        load_table(tmp_path / "a")
    record = json.loads((tmp_path / "a/table.json").read_text())
    del record["files"]  # another program's
    del record["seal"]
    (tmp_path / "a/table.json").write_text(json.dumps(record))
    assert load_table(tmp_path / "a").scores.unique().item() == 2.0


def test_a_bank_of_which_a_part_is_lost_is_made_again_from_its_runs(tmp_path):
    masks = random_subsets(12, 6)
    whole = made(tmp_path / "bank", masks[:4])
    for name in ("masks.npy", "values.npy", "bank.json"):
        content = (tmp_path / "bank" / name).read_bytes()
        (tmp_path / "bank" / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput):
            open_bank(tmp_path / "bank")
        assert_equal(made(tmp_path / "bank", masks[:4]), whole)
    assert_equal(open_bank(tmp_path / "bank"), whole)
    save_bank(whole, tmp_path / "imported")
    (tmp_path / "imported/masks.npy").write_bytes(b"")
    with pytest.raises(BadInput, match="which cannot be read"):  # nothing to make it from
        made(tmp_path / "imported", masks[:4])


def test_a_selection_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    _, tables = old_and_new(tmp_path)
    import whence

    old, new = (
        whence.select.select(table, config=SelectConfig(keep=count)) for table, count in zip(tables, (3, 5), strict=True)
    )
    old.save(tmp_path / "chosen")
    kept = []
    for _ in endings(lambda: new.save(tmp_path / "chosen"), monkeypatch):
        found = load_selection(tmp_path / "chosen")
        assert isinstance(found, Selection)
        kept.append(int(found.keep.sum()))
    assert set(kept) == {3, 5} and int(load_selection(tmp_path / "chosen").keep.sum()) == 5


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3)), np.arange(6, dtype=np.float32).reshape(2, 3).T, np.ones(0, bool), np.array(3)]
)
def test_arrays_are_written_as_numpy_reads_them(tmp_path, array):
    write_set(tmp_path, {"a.npy": array_chunks(array)}, "record.json", {})
    found = np.load(path_in_set(tmp_path, "a.npy"), allow_pickle=False)
    assert np.array_equal(found, array) and found.dtype == array.dtype and found.shape == array.shape


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    _, (old, new) = old_and_new(tmp_path)
    save_table(old, tmp_path / "table")

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull, match="no space left for"):
            save_table(new, tmp_path / "table")
    assert load_table(tmp_path / "table").scores.unique().item() == 1.0
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["scores.npy", "table.json"]


def test_links_where_files_wait_are_not_followed(tmp_path):
    _, (old, new) = old_and_new(tmp_path)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "scores.npy").write_bytes(b"x")
    for name in (".files.tmp", ".files.whole"):
        save_table(old, tmp_path / "table")
        (tmp_path / "table" / name).symlink_to(tmp_path / "victim")
        if name == ".files.whole":
            for act in (lambda: load_table(tmp_path / "table"), lambda: save_table(new, tmp_path / "table")):
                with pytest.raises(StoreCorrupt, match="symbolic link"):
                    act()
            (tmp_path / "table" / name).unlink()
        else:
            save_table(new, tmp_path / "table")
        assert [path.name for path in (tmp_path / "victim").iterdir()] == ["scores.npy"]


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error), new_folder(tmp_path / "new") as begun:
            (begun / "file").write_text("half")
            raise error
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".new.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".new.tmp" / "rest").write_text("")
    with new_folder(tmp_path / "new") as begun:
        (begun / "file").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (tmp_path / "new/file").read_text() == "whole"

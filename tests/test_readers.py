"""A reader holds what it opened: the files of a store may grow, be written to, be cut or go, and no score is of anything else."""

import gc
import json
import os
import shutil

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_store import SMALL, contents, flip, make_records, make_task
from whence.distributed import Ranks
from whence.errors import StoreChanged, StoreCorrupt, WhenceError
from whence.store import open_store, sealed_files, verify_store
from whence.store.cache import note_path
from whence.store.tensor_bytes import Memory, Span, spans_of, tensor_at

METHODS = {
    "lorif": {"method": "lorif", "factor_rank": 1},
    "logra": {"method": "logra"},
    "pca": {"method": "logra-pca"},
    "trackstar": {"method": "trackstar"},
    "grass": {"method": "grass"},
    "aligned": {"method": "aligned"},
}
QUERIES = make_records(3, first=50)
SHARD = "shards/00001.safetensors"


def build(folder, method="lorif", records=None, *, append=False, **more):
    return whence.build(
        make_task(),
        make_records() if records is None else records,
        folder,
        append=append,
        config=whence.BuildConfig(**METHODS[method], **SMALL, **more),
        runtime=QUIET,
    )


def scores_of(store):
    return whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores


def in_place(path, at=-1):
    """Change a byte of a file, its size and its time of writing as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Changed under a reader


@pytest.mark.parametrize("method", METHODS)
def test_a_store_that_grows_elsewhere_is_still_the_one_that_was_opened(tmp_path, method):
    build(tmp_path / "s", method)
    opened = open_store(tmp_path / "s")
    before = scores_of(opened)
    later = open_store(tmp_path / "s")  # whose curvature nobody has looked at yet
    build(tmp_path / "s", method, make_records(9, first=10), append=True)
    for store in (opened, later):
        assert len(store) == 10 and len(list(store.examples())) == 10
        assert torch.equal(scores_of(store), before)
        assert store.faults() == {}
    assert len(open_store(tmp_path / "s")) == 19


DAMAGE = {
    "overwritten": in_place,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: path.open("ab").write(b"x"),
    "gone": os.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.rename(path.with_name("away")), path.symlink_to(path.with_name("away"))),
}
READS = {
    "scores": scores_of,
    "hits": lambda store: whence.query(store, make_task(), QUERIES, k=10, runtime=QUIET),
    "rows": lambda store: list(store.rows([1, 5, 9])),
    "a row": lambda store: store.row(5),
    "examples": lambda store: list(store.examples()),
    "clusters": lambda store: whence.clusters.clusters(store, k=2, central=2, quiet=True),
    "study": lambda store: whence.study.study(make_task(), store, {"a": QUERIES}, store.folder.parent / "study", runtime=QUIET),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("read", READS)
def test_a_file_that_changed_after_it_was_opened_is_refused(tmp_path, damage, read):
    store = build(tmp_path / "s", "aligned" if read == "clusters" else "logra")
    DAMAGE[damage](tmp_path / "s" / ("shards/00001.jsonl" if read == "examples" else SHARD))
    with pytest.raises(
        StoreChanged, match="files in .* that have changed since they were opened .*; do this: open it again"
    ) as told:
        READS[read](store)
    assert "\n" not in str(told.value)
    assert list(store.faults()) == ["shards/00001.jsonl" if read == "examples" else SHARD]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_changes_during_a_scan_is_refused(tmp_path, damage):
    store = build(tmp_path / "s", records=make_records(40))
    shards = store.shards()
    next(shards)
    for number in range(5, 10):
        DAMAGE[damage](tmp_path / "s" / f"shards/{number:05d}.safetensors")
    with pytest.raises(StoreChanged, match="changed since they were opened"):
        list(shards)


def test_a_folder_that_is_gone_is_refused(tmp_path):
    store = build(tmp_path / "s", "logra")
    shutil.rmtree(tmp_path / "s")
    for read in READS:
        if read != "clusters":
            with pytest.raises(StoreChanged, match="it is missing"):
                READS[read](store)
    assert len(store.faults()) == 2 * len(store.seals)


def test_another_store_in_the_same_folder_is_refused(tmp_path):
    store = build(tmp_path / "s", "logra")
    shutil.rmtree(tmp_path / "s")
    build(tmp_path / "s", "logra", make_records(10, first=20))
    with pytest.raises(StoreChanged, match="it has other bytes now"):
        scores_of(store)


def test_the_same_bytes_are_as_good(tmp_path):
    store = build(tmp_path / "s", "logra")
    before = scores_of(store)
    for path in list((tmp_path / "s").rglob("*.*")):
        if path.is_file():  # as a repair does, or a restored copy
            shutil.copy(path, path.with_name("beside"))
            os.replace(path.with_name("beside"), path)
            os.chmod(path, 0o644)
    assert torch.equal(scores_of(store), before) and store.faults() == {}


def test_what_is_kept_in_memory_needs_no_files(tmp_path):
    store = build(tmp_path / "s", "logra").in_memory()
    before = scores_of(store)
    for path in (tmp_path / "s").rglob("*.safetensors"):
        in_place(path, at=-5)
    assert torch.equal(torch.cat([whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores], 1), before)
    assert set(store.faults()) == {f"shards/0000{number}.safetensors" for number in range(3)}


def test_ranks_that_open_different_stores_are_told(tmp_path, monkeypatch):
    store = build(tmp_path / "s", "logra")
    monkeypatch.setattr(Ranks, "gathered", lambda self, value: [value, ("another", value[1])])
    monkeypatch.setattr(Ranks, "connected", lambda self: torch.no_grad())
    for ask in (whence.score_table, whence.query):
        with pytest.raises(StoreChanged, match="that changed while 2 ranks opened it; .*; do this: wait until nobody writes"):
            ask(store, make_task(), QUERIES, runtime=whence.Runtime(quiet=True, ranks=Ranks(0, 2)))


def test_a_store_that_is_written_to_while_it_is_opened(tmp_path, monkeypatch):
    store = build(tmp_path / "s", "logra")
    read, grown = sealed_files.SealedFiles.check, []

    def check(self, name, noted=None):
        if name == "curvature.safetensors" and not grown:
            grown.append(name)
            build(tmp_path / "s", "logra", make_records(9, first=10), append=True)
        return read(self, name, noted)

    monkeypatch.setattr(sealed_files.SealedFiles, "check", check)
    with pytest.raises(
        StoreChanged, match="that is being written to; needed a finished build; do this: wait until it is finished"
    ):
        open_store(store.folder)


# Damage that hides


def test_a_note_that_travelled_is_worth_nothing(tmp_path):
    folder = build(tmp_path / "s", "logra").folder
    open_store(folder)
    note = note_path(folder).read_bytes()
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    in_place(tmp_path / "copy" / SHARD)
    shutil.rmtree(folder)
    os.rename(tmp_path / "copy", folder)
    note_path(folder).write_bytes(note)
    with pytest.raises(StoreCorrupt, match=r"00001.safetensors \(its checksum is not the sealed one\)"):
        open_store(folder)


@pytest.mark.parametrize("name", [SHARD, "shards/00000.jsonl", "curvature.safetensors"])
def test_damage_that_keeps_size_and_time_is_found(tmp_path, name):
    folder = build(tmp_path / "s", "logra").folder
    for _ in range(2):
        open_store(folder)
    in_place(folder / name)
    with pytest.raises(StoreCorrupt, match=r"its checksum is not the sealed one"):
        open_store(folder)


def test_bytes_that_rot_without_a_trace_are_found_when_they_are_read(tmp_path, monkeypatch):
    """As if nothing of a file had changed but what is read: another byte from a disk."""
    folder = build(tmp_path / "s", "logra").folder
    monkeypatch.setattr(sealed_files, "_identity", lambda stat: (stat.st_dev, stat.st_ino, stat.st_size, 1, 1))
    open_store(folder)
    assert set(json.loads(note_path(folder).read_bytes())) == {*open_store(folder).opened.sealed}
    for name, read in (
        (SHARD, scores_of),
        ("curvature.safetensors", scores_of),
        (SHARD, lambda store: store.shards(["norms"])),
    ):
        # Norms lie before the offsets, which are the end of a shard.
        in_place(folder / name, at=-8 * 6 if name == SHARD else -1)
        store = open_store(folder)
        with pytest.raises(StoreCorrupt, match="has not its checksum"):
            list(read(store))
        in_place(folder / name, at=-8 * 6 if name == SHARD else -1)
        assert verify_store(open_store(folder)) == []


def test_young_files_are_not_noted(tmp_path, monkeypatch):
    """A file may change twice within a tick of the clock."""
    folder = build(tmp_path / "s", "logra").folder
    monkeypatch.setattr(
        sealed_files.time, "time_ns", lambda: max(path.stat().st_ctime_ns for path in folder.rglob("*")) + 10**6
    )
    note_path(folder).unlink()
    store = open_store(folder)
    assert "curvature.safetensors" not in json.loads(note_path(folder).read_bytes())
    assert torch.equal(scores_of(store), scores_of(store))


# How bytes are read


def test_tensors_stay_what_they_are_while_more_are_read(tmp_path):
    store = build(tmp_path / "s", records=make_records(40))
    kept = [tensors for _, tensors in store.shards()]
    for tensors, (_, again) in zip(kept, store.shards(), strict=True):
        assert all(torch.equal(tensors[name], again[name]) for name in again)


def test_memory_is_used_again_once_nobody_holds_it():
    memory = Memory()
    first = tensor_at(memory.take(4096), 64, Span(torch.float32, (5, 2), 0, 40))
    part = first[1:]
    place = first.data_ptr()
    del first
    assert tensor_at(memory.take(4096), 64, Span(torch.float32, (5, 2), 0, 40)).data_ptr() != place
    del part
    held = [tensor_at(memory.take(4096), 64, Span(torch.float32, (10,), 0, 40)) for _ in range(2)]
    assert place in {tensor.data_ptr() for tensor in held}


def test_no_file_stays_open_once_a_store_is_dropped(tmp_path):
    build(tmp_path / "s", "logra")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        scores_of(open_store(tmp_path / "s"))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (20).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"[[]]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        header(a=7),
        header(a={**GOOD, "shape": [-2]}),
        header(a={**GOOD, "shape": [2.0]}),
        header(a={**GOOD, "shape": [True, 2]}),
        header(a={**GOOD, "shape": [1] * 60 + [2]}),
        header(a={**GOOD, "shape": [3]}),
        header(a={**GOOD, "dtype": "F31"}),
        header(a={**GOOD, "dtype": []}),
        header(a={**GOOD, "data_offsets": [8, 0]}),
        header(a={**GOOD, "data_offsets": [0]}),
        header(a={**GOOD, "shape": [1 << 60], "data_offsets": [0, 1 << 62]}),
        header(a=GOOD, b={**GOOD, "data_offsets": [4, 12]}) + b"\0" * 12,
        header(a=GOOD) + b"\0" * 7,
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="its header|tensors that overlap"):
        spans_of(lambda start, stop: content[start:stop], len(content))
    folder = build(tmp_path / "s").folder
    (folder / SHARD).write_bytes(content)
    with pytest.raises(WhenceError):
        open_store(folder)
    with pytest.raises(StoreCorrupt, match="found a damaged file"):
        scores_of(open_store(folder, check=False))


def test_the_bytes_of_a_store_are_untouched_by_its_readers(tmp_path):
    store = build(tmp_path / "s", "logra")
    before = contents(tmp_path / "s")
    scores_of(store)
    flip(tmp_path / "s" / SHARD)
    with pytest.raises(WhenceError):
        scores_of(store)
    flip(tmp_path / "s" / SHARD)
    assert contents(tmp_path / "s") == before and torch.equal(scores_of(store), scores_of(open_store(tmp_path / "s")))

"""A build that was killed, ran out of disk or of memory goes on, and ends in the same bytes as one that was not."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_store import SMALL, contents, flip, make_records, make_task
from whence.errors import BadInput, DiskFull, OutOfMemory, StoreCorrupt, StoreMismatch
from whence.store import delete_rows, open_store, take_back_unfinished, verify_store
from whence.store import writer as writer_module

METHODS = {
    "lorif": {"method": "lorif", "factor_rank": 1},
    "logra-pca": {"method": "logra-pca"},
    "grass": {"method": "grass-selective"},
    "trackstar": {"method": "trackstar"},
}
RECORDS = 18  # five shards of four rows, the last of two


def build(folder, method="lorif", *, append=False, **more):
    return whence.build(
        make_task(),
        make_records(RECORDS),
        folder,
        append=append,
        config=whence.BuildConfig(**METHODS[method], **SMALL, **more),
        runtime=QUIET,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Bytes of a build that nothing disturbed, per method."""
    made = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp("unbroken") / method
        build(folder, method)
        made[method] = contents(folder)
        assert sum(name.endswith(".safetensors") for name in made[method]) == 5 + len(
            {"curvature", "axes", "mask", "moments", "probe"} & {n[:-12] for n in made[method]}
        )
    return made


# Killed


def _hang(folder):
    (folder / "reached").touch()
    time.sleep(600)


def _build_and_hang(folder, method, place):
    """In a process of its own: build, and stop moving at one place, where the parent kills it."""
    build_module = sys.modules["whence.pipeline.stored.build"]  # as an attribute of the package it is the function
    import whence.store.files as files_module

    torch.set_num_threads(1)
    kind, _, where = place.partition(":")

    def before(function, condition):
        def waiting(*arguments, **keywords):
            if condition(*arguments, **keywords):
                _hang(folder)
            return function(*arguments, **keywords)

        return waiting

    if kind == "sealing":  # numbers and examples are there, their seal is not
        writer_module.write_json = before(writer_module.write_json, lambda path, content: path.name == where)
    elif kind == "renaming":  # a file is written beside its place
        files_module.os.replace = before(os.replace, lambda old, new: new.name == where)
    elif kind == "writing":  # between shards
        writer_module.Writer.write = before(writer_module.Writer.write, lambda self, shard, *more: shard.number == int(where))
    elif kind == "curvature":
        build_module.fit_fisher = before(build_module.fit_fisher, lambda *args, **options: True)
    build(folder, method)


@pytest.fixture(scope="module")
def processes():
    """Children of one process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_resume", "whence.pipeline"])
    return context


def kill_at(place, folder, method, processes):
    folder.mkdir()
    child = processes.Process(target=_build_and_hang, args=(folder, method, place))
    child.start()
    deadline = time.monotonic() + 60
    while not (folder / "reached").exists():
        assert child.is_alive() and time.monotonic() < deadline, f"the build did not come to {place}"
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (folder / "reached").unlink()


@pytest.mark.parametrize(
    ("place", "method", "shards"),
    [
        ("renaming:blueprint.json", "lorif", 0),
        ("writing:0", "logra-pca", 0),
        ("writing:1", "lorif", 1),
        ("sealing:00002.json", "lorif", 2),
        ("renaming:00003.safetensors", "logra-pca", 3),
        ("renaming:00003.json", "lorif", 3),
        ("curvature", "lorif", 5),
        ("renaming:curvature.safetensors", "logra-pca", 5),
        ("renaming:manifest.json", "lorif", 5),
    ],
)
def test_killed_build_goes_on_to_the_same_bytes(tmp_path, unbroken, processes, place, method, shards):
    folder = tmp_path / "store"
    kill_at(place, folder, method, processes)
    assert len(list(folder.glob("shards/*.json"))) == shards and not (folder / "manifest.json").exists()
    assert bool(list(folder.rglob("*.tmp"))) == place.startswith("renaming")
    if shards:
        with pytest.raises(StoreCorrupt, match=rf"unfinished store at .* \({shards} shards so far\)"):
            open_store(folder)
    sealed = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*") if path.with_suffix(".json").exists()}
    build(folder, method)
    assert contents(folder) == unbroken[method]
    if place != "renaming:00003.json":  # its seal came to be only now
        assert sealed == {path: path.stat().st_mtime_ns for path in sealed if path.suffix != ".tmp"}


def test_killed_twice_and_killed_while_appending(tmp_path, processes, unbroken):
    folder = tmp_path / "store"
    kill_at("writing:1", folder, "logra-pca", processes)
    kill_at_again = folder / "reached"
    assert not kill_at_again.exists()
    build(folder, "logra-pca")
    assert contents(folder) == unbroken["logra-pca"]

    task, more = make_task(), make_records(9, first=RECORDS)
    options = {**METHODS["logra-pca"], **SMALL}
    whole = tmp_path / "whole"
    build(whole, "logra-pca")
    whence.build(task, more, whole, append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module.Writer, "write", _interrupted(writer_module.Writer.write, number=6))
        with pytest.raises(KeyboardInterrupt):
            whence.build(task, more, folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    # Until the addition is finished the store is what it was, and says so.
    assert open_store(folder).ids() == tuple(f"r{row}" for row in range(RECORDS)) and verify_store(open_store(folder)) == []
    notes = whence.query(folder, task, make_records(1), runtime=QUIET).notes
    assert any(note.startswith("documents are being added to this store, or an addition was stopped") for note in notes)
    with pytest.raises(
        StoreMismatch, match="found an unfinished addition to .*; do this: run the same `whence build --append`"
    ):
        delete_rows(folder, ["r1"])
    taken_back = tmp_path / "taken back"
    shutil.copytree(folder, taken_back)
    take_back_unfinished(taken_back)
    assert contents(taken_back) == unbroken["logra-pca"]
    whence.build(task, more, folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    assert contents(folder) == contents(whole)


def test_a_second_builder_in_another_process_is_refused(tmp_path, processes, unbroken):
    folder = tmp_path / "store"
    folder.mkdir()
    child = processes.Process(target=_build_and_hang, args=(folder, "lorif", "writing:1"))
    child.start()
    try:
        deadline = time.monotonic() + 60
        while not (folder / "reached").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(BadInput, match=r"found another build writing to .*; do this: wait for it to end"):
            build(folder)
    finally:
        child.kill()
        child.join()
    (folder / "reached").unlink()
    build(folder)
    assert contents(folder) == unbroken["lorif"]


# Interrupted


def _interrupted(write, number):
    def interrupted(self, shard, *more):
        if shard.number == number:
            raise KeyboardInterrupt
        return write(self, shard, *more)

    return interrupted


def test_interrupt_leaves_a_store_that_goes_on(tmp_path, monkeypatch, unbroken):
    with monkeypatch.context() as patch:
        patch.setattr(writer_module.Writer, "write", _interrupted(writer_module.Writer.write, number=2))
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "store")
    assert len(list((tmp_path / "store").glob("shards/*.json"))) == 2
    build(tmp_path / "store")
    assert contents(tmp_path / "store") == unbroken["lorif"]


# Damaged


@pytest.mark.parametrize("suffixes", [(".safetensors",), (".jsonl",), (".json",), (".safetensors", ".jsonl", ".json")])
def test_a_deleted_shard_is_made_again(tmp_path, unbroken, suffixes):
    build(tmp_path / "store")
    for suffix in suffixes:
        (tmp_path / f"store/shards/00003{suffix}").unlink()
    build(tmp_path / "store")
    assert contents(tmp_path / "store") == unbroken["lorif"]


@pytest.mark.parametrize("lost", [1, 5])
def test_a_deleted_shard_of_a_grown_store_is_made_again(tmp_path, lost):
    folder, options = tmp_path / "store", {**METHODS["logra-pca"], **SMALL}
    parts = make_records(6), make_records(9, first=6)  # shards 0 and 1, then 2 to 4, then 5
    for part in (*parts, make_records(3, first=40)):
        whence.build(make_task(), part, folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    before = contents(folder)
    for path in folder.glob(f"shards/0000{lost}.*"):
        path.unlink()
    whence.build(
        make_task(),
        parts[0] if lost == 1 else make_records(3, first=40),
        folder,
        append=True,
        config=whence.BuildConfig(**options),
        runtime=QUIET,
    )
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["shards/00001.safetensors", "shards/00001.json", "manifest.json"])
def test_a_cut_file_is_made_again(tmp_path, unbroken, name):
    folder = tmp_path / "store"
    build(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    if name.endswith(
        "00001.json"
    ):  # as the advice for the shard says; a lost seal alone is not seen while the manifest is there
        (folder / "shards/00001.safetensors").unlink()
    build(folder)
    assert contents(folder) == unbroken["lorif"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("curvature.safetensors", "lorif"),
        ("manifest.json", "lorif"),
        ("axes.safetensors", "logra-pca"),
        ("mask.safetensors", "grass"),
        ("moments.safetensors", "trackstar"),
    ],
)
def test_a_deleted_file_beside_the_shards_is_made_again(tmp_path, unbroken, name, method):
    build(tmp_path / "store", method)
    (tmp_path / "store" / name).unlink()
    build(tmp_path / "store", method)
    assert contents(tmp_path / "store") == unbroken[method]


@pytest.mark.parametrize("name", ["shards/00001.safetensors", "shards/00003.jsonl", "curvature.safetensors"])
def test_a_damaged_file_of_unchanged_size_is_made_again(tmp_path, unbroken, capsys, name):
    folder = tmp_path / "store"
    build(folder)
    flip(folder / name)
    options = SMALL
    whence.build(make_task(), make_records(RECORDS), folder, config=whence.BuildConfig(**METHODS["lorif"], **options))
    assert f"damaged, and made again from its data: {name.removeprefix('shards/0000').split('.')[0]}" in capsys.readouterr().err
    assert contents(folder) == unbroken["lorif"] and verify_store(open_store(folder)) == []


@pytest.mark.parametrize("name", ["shards/00001.safetensors", "curvature.safetensors"])
def test_the_advice_for_a_damaged_file_works(tmp_path, unbroken, name):
    """Follow the error's own words."""
    folder = tmp_path / "store"
    build(folder)
    flip(folder / name)
    with pytest.raises(
        StoreCorrupt, match=r"delete (that shard's files \(also its .json\)|it) and run the same `whence build`"
    ):
        open_store(folder)
    for file in folder.glob(f"{name.split('.')[0]}.*"):
        file.unlink()
    build(folder)
    assert contents(folder) == unbroken["lorif"] and verify_store(open_store(folder)) == []


# Shards 0 and 1, 2 to 4, 5: how many records each dataset has, and from which on.
GROWN = {0: (6, 0), 1: (9, 6), 2: (3, 40)}
PATTERNS = [[shard for shard in range(6) if pattern >> shard & 1] for pattern in random.Random(0).sample(range(1, 64), 28)]


def add(folder, number):
    count, first = GROWN[number]
    return whence.build(
        make_task(),
        make_records(count, first=first),
        folder,
        append=True,
        config=whence.BuildConfig(**METHODS["lorif"], **SMALL),
        runtime=QUIET,
    )


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A store of three datasets."""
    folder = tmp_path_factory.mktemp("grown") / "store"
    for number in GROWN:
        add(folder, number)
    return folder


@pytest.mark.parametrize("lost", PATTERNS, ids=lambda lost: "".join(map(str, lost)))
def test_whatever_is_lost_of_a_grown_store_is_made_again(tmp_path, grown, lost):
    """Shards deleted, cut or flipped, or only their seals gone; the datasets come back in any order."""
    folder, drawn = tmp_path / "store", random.Random(str(lost))
    shutil.copytree(grown, folder)
    for shard in lost:
        files = [folder / f"shards/{shard:05d}{suffix}" for suffix in (".safetensors", ".jsonl", ".json")]
        how = drawn.choice(["all", "one", "cut", "flip"])
        if how == "all":
            for file in files:
                file.unlink()
        elif how == "one":
            drawn.choice(files).unlink()
        elif how == "cut":
            file = drawn.choice(files)
            file.write_bytes(file.read_bytes()[:-7])
        else:
            flip(drawn.choice(files[:2]))
    order = drawn.sample(list(GROWN), 3)
    for number in order:
        try:
            store = add(folder, number)
        except StoreCorrupt as error:
            assert re.search(r"\d shards of other data that are missing or damaged in .* \(number ", error.found)
            assert number != order[-1]
    assert len(store) == 18 and contents(folder) == contents(grown) and verify_store(store) == []


def test_datasets_that_lost_all_their_shards_come_back_where_they_were(tmp_path, grown):
    folder = tmp_path / "store"
    shutil.copytree(grown, folder)
    for path in folder.glob("shards/*"):
        path.unlink()
    for number in (2, 0):
        with pytest.raises(StoreCorrupt, match="shards of other data that are missing"):
            add(folder, number)
        with pytest.raises(StoreCorrupt, match="found an unfinished store"):
            open_store(folder)
    add(folder, 1)
    assert contents(folder) == contents(grown)


def test_new_data_are_not_added_to_what_is_not_whole(tmp_path, grown):
    folder = tmp_path / "store"
    shutil.copytree(grown, folder)
    flip(folder / "shards/00003.jsonl")
    with pytest.raises(StoreMismatch, match="found an unfinished build of other data"):
        whence.build(
            make_task(),
            make_records(4, first=50),
            folder,
            append=True,
            config=whence.BuildConfig(**METHODS["lorif"], **SMALL),
            runtime=QUIET,
        )


def test_cut_axes_are_not_used(tmp_path):
    folder = tmp_path / "store"
    build(folder, "logra-pca")
    path = folder / "axes.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreCorrupt, match=r"axes.safetensors \(.*delete it and run the same `whence build` again"):
        build(folder, "logra-pca")


def test_flipped_axes_are_not_appended_to(tmp_path):
    folder = tmp_path / "store"
    build(folder, "logra-pca")
    path = folder / "axes.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    before = contents(folder)
    with pytest.raises(StoreCorrupt, match=r"axes.safetensors \(its checksum is not the sealed one\)"):
        whence.build(
            make_task(),
            make_records(3, first=30),
            folder,
            append=True,
            config=whence.BuildConfig(**METHODS["logra-pca"], **SMALL),
            runtime=QUIET,
        )
    assert contents(folder) == before


# No room


class _FullFile:
    """A file on a disk that takes this many more bytes."""

    room = 0

    def __init__(self, path, mode, **how):
        self.file = open(path, mode, **how)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if len(data) > _FullFile.room:
            self.file.write(bytes(data[: _FullFile.room]))
            raise OSError(errno.ENOSPC, "No space left on device")
        _FullFile.room -= len(data)
        return self.file.write(data)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.97])
def test_full_disk(tmp_path, monkeypatch, unbroken, share):
    folder = tmp_path / "store"
    room = int(share * sum(map(len, unbroken["lorif"].values())))
    with monkeypatch.context() as patch:
        patch.setattr(_FullFile, "room", room)
        patch.setattr("whence.durable.open", _FullFile, raising=False)
        with pytest.raises(
            DiskFull, match=r"found no space left for .*store.*; do this: free some space and run the same command again"
        ):
            build(folder)
    assert not list(folder.rglob("*.tmp")) and not (folder / "manifest.json").exists()
    build(folder)
    assert contents(folder) == unbroken["lorif"]


def test_too_little_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    usage = type("usage", (), {"free": 1 << 19})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        patch.setattr("whence.compress.RowCodec.row_bytes", lambda self: 1 << 20)
        with pytest.raises(DiskFull, match=r"found 512 KiB free at .*; needed 18 MiB for 18 rows; .*a smaller rank"):
            build(folder)
    assert not contents(folder)
    options = {**SMALL, "rank": 2}
    assert (
        len(
            whence.build(
                make_task(), make_records(3), folder, config=whence.BuildConfig(method="grad-dot", **options), runtime=QUIET
            )
        )
        == 3
    )


def _out_of_memory_above(limit, capture, error):
    def limited(task, plan, batch, consume, *, num_examples, **options):
        if num_examples <= limit:
            return capture(task, plan, batch, consume, num_examples=num_examples, **options)
        seen = []

        def failing(index, pair):  # memory runs out in the middle of the backward pass, as it does
            consume(index, pair)
            seen.append(index)
            if len(seen) == 2:
                raise error

        return capture(task, plan, batch, failing, num_examples=num_examples, **options)

    return limited


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_too_large_a_batch_is_halved(tmp_path, monkeypatch, error):
    from whence.capture import capture

    options = {**SMALL, "method": "lorif", "factor_rank": 1, "dtype": "float64", "rows_per_shard": 16}
    whole = whence.build(make_task(), make_records(9), tmp_path / "whole", config=whence.BuildConfig(**options), runtime=QUIET)
    monkeypatch.setattr("whence.score.query.capture", _out_of_memory_above(2, capture, error))
    halved = whence.build(
        make_task(), make_records(9), tmp_path / "halved", config=whence.BuildConfig(**options), runtime=QUIET
    )
    one, other = (next(store.shards())[1] for store in (whole, halved))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-11 * max(1.0, one[name].abs().max().item()))


def test_one_example_that_does_not_fit(tmp_path, monkeypatch):
    from whence.capture import capture

    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with monkeypatch.context() as patch:
        patch.setattr("whence.score.query.capture", _out_of_memory_above(0, capture, error))
        with pytest.raises(
            OutOfMemory, match=r"found no memory for a batch of one example; .*long='split', a smaller max_length"
        ):
            build(tmp_path / "store")
    assert not (tmp_path / "store/manifest.json").exists()
    build(tmp_path / "store")


def test_other_failures_are_not_taken_for_memory(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("whence.score.query.capture", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        build(tmp_path / "store")


def test_manifest_says_what_is_there(tmp_path):
    store = build(tmp_path / "store")
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["rows"] == RECORDS and [shard["rows"] for shard in manifest["shards"]] == [4, 4, 4, 4, 2]
    assert [name.partition("-")[0] for name in sorted(manifest["files"])] == [
        "curvature.safetensors",
        "documents",
        "probe.safetensors",
    ] and manifest["blueprint"] == store.blueprint.digest()

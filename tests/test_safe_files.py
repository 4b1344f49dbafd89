"""Folders of strangers: nothing is read or written through their links, and what a reader notes stays with the reader."""

import os
import re
import stat
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.errors import BadInput, StoreCorrupt
from whence.store import open_store, read_json, read_tensors, verify_store, write_bytes, write_json
from whence.store.cache import cache_folder, note_path
from whence.store.files import locked

SMALL = {"rank": 4, "rows_per_shard": 4}
RECORDS = [{"id": f"r{n}", "inputs": torch.full((3,), float(n)), "label": n % 2} for n in range(6)]


def make_task():
    torch.manual_seed(0)
    return whence.Classification(nn.Linear(3, 2))


@pytest.fixture
def built(tmp_path):
    return whence.build(
        make_task(), RECORDS, tmp_path / "store", config=whence.BuildConfig(method="logra", **SMALL), runtime=QUIET
    )


@pytest.fixture
def victim(tmp_path):
    """A file outside the store that nothing may touch."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious" and not path.is_symlink()


def everything(folder):
    """Kind, size, times and content of all that is in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mark = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(mark.st_mode) else os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (mark.st_mode, mark.st_ino, mark.st_mtime_ns, content)
    return found


def test_a_query_changes_nothing_in_the_store(built, victim):
    for name in (".verified.json", ".verified.json.tmp", ".verified-0-of-1.json"):
        (built.folder / name).symlink_to(victim)
    before = everything(built.folder)
    for _ in range(2):
        whence.query(built.folder, make_task(), RECORDS[:1], runtime=QUIET)
    assert verify_store(open_store(built.folder)) == []
    assert everything(built.folder) == before


def test_notes_are_kept_in_the_cache_of_the_user(built, tmp_path, monkeypatch):
    monkeypatch.delenv("WHENCE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "whence"
    open_store(built.folder)
    (note,) = (tmp_path / "cache").rglob("*.json")
    assert note == note_path(built.folder)
    (tmp_path / "same").symlink_to(built.folder)
    open_store(tmp_path / "same")
    assert list((tmp_path / "cache").rglob("*.json")) == [note]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() in (tmp_path / ".cache" / "whence", tmp_path / "Library" / "Caches" / "whence")


def test_without_a_place_for_notes_all_is_checked(built, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHENCE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert len(open_store(built.folder)) == 6


@pytest.mark.parametrize("name", ["blueprint.json", "manifest.json", "shards/00000.json"])
def test_nothing_is_written_through_a_planted_link(tmp_path, victim, name):
    planted = tmp_path / "store" / f"{name}.tmp"
    planted.parent.mkdir(parents=True)
    planted.symlink_to(victim)
    store = whence.build(
        make_task(), RECORDS, tmp_path / "store", config=whence.BuildConfig(method="logra", **SMALL), runtime=QUIET
    )
    assert len(store) == 6 and not planted.is_symlink() and not (tmp_path / "store" / name).is_symlink()


@pytest.mark.parametrize("name", [".lock", ".leases"])
def test_a_lock_is_not_made_through_a_link(tmp_path, name):
    from whence.store import leases

    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "made")
    with pytest.raises(BadInput, match="which cannot be written"), leases(tmp_path / "store", 0, 2):
        pass
    assert not (tmp_path / "made").exists()


def test_a_lock_that_is_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(BadInput, match=r"\.lock is not a file"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "name",
    ["blueprint.json", "manifest.json", "curvature.safetensors", "shards/00000.safetensors", "shards/00001.jsonl", "shards"],
)
def test_a_store_with_links_is_refused(built, tmp_path, name):
    path = built.folder / name
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreCorrupt, match="symbolic link"):
        open_store(built.folder)
    if name.endswith(("tensors", "jsonl")):
        assert any("symbolic link" in fault for fault in verify_store(open_store(built.folder, check=False)))


@pytest.mark.parametrize("name", ["blueprint.json", "manifest.json", "curvature.safetensors", "shards/00000.jsonl"])
def test_a_pipe_is_not_waited_for(built, name):
    (built.folder / name).unlink()
    os.mkfifo(built.folder / name)
    start = time.monotonic()
    with pytest.raises(StoreCorrupt, match="it is a pipe, not a file"):
        open_store(built.folder)
    assert time.monotonic() - start < 1


def test_readers_refuse_links_pipes_and_endless_devices(tmp_path):
    write_json(tmp_path / "real.json", {})
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name, what in (("link", "symbolic link"), ("zero", "symbolic link"), ("pipe", "pipe"), ("folder", "folder")):
        for read in (read_json, read_tensors):
            with pytest.raises(StoreCorrupt, match=f"it is a {what}, not a file"):
                read(tmp_path / f"{name}.json")


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path):
    def slow():
        yield b"first"
        write_bytes(tmp_path / "file", [b"second"])

    with pytest.raises(BadInput, match="another process is writing it"):
        write_bytes(tmp_path / "file", slow())
    assert (tmp_path / "file").read_bytes() == b"second" and os.listdir(tmp_path) == ["file"]


def test_nothing_in_a_store_steers_the_terminal(built, capsys):
    from tests.test_trust import record
    from whence.cli import main

    record(built.folder, model="\x1b]0;owned\x07\u202e\x9b2J", data="/\x1b[2J")
    for words in (["inspect"], ["verify"], ["inspect", "--json"], ["query", "--text", "a"]):
        main([words[0], str(built.folder), *words[1:]])
        told = "".join(capsys.readouterr())
        assert told and not set(told) & set("\x1b\x07\x9b\u202e")


def test_json_keeps_its_meaning_without_steering():
    import json

    from whence.terminal import json_text

    content = {"text": "a\x1b[2J\x9b\x7f\u202e\u2028 \u00e9 \u4e2d"}
    text = json_text(content)
    assert json.loads(text) == content and "\u00e9" in text and not set(text) & set("\x1b\x9b\x7f\u202e\u2028")


# Who may read or write bytes in another way than through the strict readers and the durable writer, and why.
OPENERS = {
    "capture/memory.py": "the system's own figures",
    "bench/own.py": "programs that the person named, for a digest",
    "commands/study.py": "what this very process has written",
    "commands/truth.py": "programs that the person named, for a digest",
    "commands/select_inputs.py": "programs that the person named, for a digest",
    "demo/corpus.py": "Python's own library, as text",
    "durable.py": "the writer",
    "evaluate/command.py": "a folder of its own for a command that the person named",
    "evaluate/imports.py": "arrays that the person named, without pickles",
    "load/arrays.py": "arrays that the person named, without pickles",
    "tasks/draws.py": "one array that a person or a store names, opened as a plain file, without pickles",
    "plain_files.py": "the readers",
    "report/html.py": "the package's own style",
    "serve/app.py": "the package's own page",
    "store/examples.py": "a line that a reader has read",
    "store/files.py": "the readers",
    "store/tensor_bytes.py": "the readers",
    "strict_json.py": "the readers",
    "tasks/causal_lm.py": "a tokenizer in memory",
    "cli.py": "the null device",
}
RAW = re.compile(
    r"""json\.loads?\((?!json\.dumps)|np\.(?:load|save|memmap|fromfile)\(|torch\.(?:load|save|from_file)\(|safe_open|load_file|save_file|mmap\.mmap
    |\.(?:read|write)_(?:text|bytes)\(|(?<![\w.])open\(|os\.open\(|pickle\.loads?\(|Image\.open\((?!io\.BytesIO)""",
    re.VERBOSE,
)


def test_everything_is_read_and_written_through_the_strict_readers():
    package = Path(whence.__file__).parent
    found = {
        str(path.relative_to(package)): match[0]
        for path in package.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if (match := RAW.search(line.partition("  #")[0])) and not line.lstrip().startswith(("#", ">>>"))
    }
    assert {name: what for name, what in found.items() if name not in OPENERS} == {}
    assert OPENERS.keys() <= found.keys()  # a name that is no longer needed goes

"""Stores in an S3 server on loopback: the objects are the files of a local store, byte for byte."""

import json
import logging
import re
import shlex
import threading
from pathlib import Path

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_store import SMALL, contents, make_records, make_task
from whence.cli import main
from whence.distributed import Ranks
from whence.errors import BadInput, StoreCorrupt
from whence.store import delete_rows, located, open_store, verify_store
from whence.store import reader as reader_module
from whence.store import writer as writer_module

pytest.importorskip("s3fs")
pytest.importorskip("upath")
server_module = pytest.importorskip("moto.server")

ROWS = 18  # five shards
OPTIONS = {**SMALL, "method": "lorif", "factor_rank": 1}


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, request):
    """URL of an empty bucket."""
    import boto3
    import s3fs

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", server),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = "b" + str(abs(hash(request.node.name)))
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=name)
    return f"s3://{name}"


def objects(url):
    path = located(url)
    return {name.split("/", 2)[2]: path.fs.cat_file(name) for name in path.fs.find(path.path)}


def build(folder, **more):
    return whence.build(
        make_task(), make_records(ROWS), folder, config=whence.BuildConfig(**{**OPTIONS, **more}), runtime=QUIET
    )


def test_a_store_is_written_scanned_and_verified(bucket, tmp_path):
    store, alone = build(f"{bucket}/store"), build(tmp_path)
    assert objects(f"{bucket}/store") == contents(tmp_path)
    assert store.ids() == alone.ids() and store.example(7) == alone.example(7)
    assert str(store.folder) == f"{bucket}/store"
    queries = make_records(3, first=50)
    answers = [
        whence.query(place, make_task(), queries, k=3, runtime=QUIET).to_dict() for place in (f"{bucket}/store", tmp_path)
    ]
    assert answers[0] == answers[1]
    tables = [whence.score_table(place, make_task(), queries, runtime=QUIET).scores for place in (store, alone)]
    assert torch.equal(*tables)
    for mine, theirs in zip(store.rows([1, 2, 9, 17]), alone.rows([1, 2, 9, 17]), strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert verify_store(open_store(f"{bucket}/store")) == []


def test_a_build_that_stopped_goes_on(bucket, tmp_path, monkeypatch):
    write = writer_module.Writer.write

    def stopping(self, shard, *more):
        if shard.number == 3:
            raise KeyboardInterrupt
        write(self, shard, *more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer_module.Writer, "write", stopping)
        build(f"{bucket}/store")
    with pytest.raises(StoreCorrupt, match=r"found an unfinished store at s3://.*/store \(3 shards so far\)"):
        open_store(f"{bucket}/store")
    written = []
    monkeypatch.setattr(writer_module.Writer, "write", lambda *a: (written.append(a[1].number), write(*a)))
    build(f"{bucket}/store")
    assert written == [3, 4]
    build(tmp_path)
    assert objects(f"{bucket}/store") == contents(tmp_path)
    assert len(build(f"{bucket}/store")) == ROWS and written == [3, 4, 0, 1, 2, 3, 4]  # those of the local one


def test_damage_is_found(bucket):
    store = build(f"{bucket}/store")
    path = store.folder / "shards" / "00002.safetensors"
    good = path.read_bytes()
    path.fs.pipe_file(path.path, good[:-1] + bytes([good[-1] ^ 1]))
    assert verify_store(open_store(f"{bucket}/store")) == [f"{path}: its checksum is not the sealed one"]
    path.fs.pipe_file(path.path, good[:4100])
    with pytest.raises(StoreCorrupt, match="found a damaged file s3://.*00002.safetensors .* bytes are there"):
        open_store(f"{bucket}/store")
    with pytest.raises(StoreCorrupt, match="found a damaged file s3://.*00002.safetensors"):
        list(store.shards())
    path.unlink()
    with pytest.raises(StoreCorrupt, match="found a damaged file s3://.*00002.safetensors .it is missing"):
        open_store(f"{bucket}/store")


def test_shards_are_fetched_ahead(bucket, monkeypatch):
    store, asked, gate = build(f"{bucket}/store"), [], threading.Event()
    read = reader_module.read_tensors

    def noted(path, names=None):
        asked.append(path.name)
        if len(asked) == 3:
            gate.set()
        return read(path, names)

    monkeypatch.setattr(reader_module, "read_tensors", noted)
    shards = store.shards(["norms"])
    start, first = next(shards)
    assert gate.wait(5) and start == 0 and list(first) == ["norms"]  # two more are on the way
    assert sorted(asked) == [f"{number:05d}.safetensors" for number in range(3)]
    assert [start for start, _ in shards] == [4, 8, 12, 16] and len(asked) == 5


def test_the_command_line_takes_urls(bucket, tmp_path, monkeypatch, capsys):
    (tmp_path / "job.py").write_text(
        "from tests.test_store import make_records, make_task as task\ndef data(): return make_records(6)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["build", "job.py:task", "job.py:data", "-o", f"{bucket}/s", "--method", "logra", "--rank", "2"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["store"] == f"{bucket}/s"
    assert main(["verify", f"{bucket}/s"]) == 0 and main(["inspect", f"{bucket}/s", "--json"]) == 0
    assert main(["query", f"{bucket}/s", "--file", "job.py:data", "--trust", "--json"]) == 0
    capsys.readouterr()
    assert main(["query", f"{bucket}/other", "--file", "job.py:data"]) == 2
    assert f"whence: found no store at {bucket}/other; needed a folder made by" in capsys.readouterr().err


def test_what_cannot_be_done_says_so(bucket, monkeypatch):
    ranks = whence.Runtime(ranks=Ranks(0, 2))
    with pytest.raises(BadInput, match="found several processes for s3://.*; needed a file system with locks"):
        whence.build(
            make_task(), make_records(ROWS), f"{bucket}/store", config=whence.BuildConfig(method="logra"), runtime=ranks
        )
    with pytest.raises(BadInput, match="found method aligned for s3://.* without factors; needed a folder on a disk"):
        whence.build(make_task(), make_records(ROWS), f"{bucket}/store", config=whence.BuildConfig(method="aligned"))
    with pytest.raises(BadInput, match="found s3://nobucket-here/.*which cannot be written .there is no such bucket."):
        build("s3://nobucket-here/store")
    with pytest.raises(BadInput, match="found nosuch://a/b, for which a package is missing .*; do this: pip install"):
        open_store("nosuch://a/b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(BadInput, match="found s3://a/b, which cannot be used .*; do this: check the address"):
        open_store("s3://a/b")


def test_aligned_with_factors_on_a_disk(bucket, tmp_path):
    options = {**SMALL, "method": "aligned", "rank": 8, "dtype": "int8", "factors": tmp_path / "factors"}
    for folder in (f"{bucket}/store", tmp_path / "store"):
        whence.build(make_task(), make_records(ROWS), folder, config=whence.BuildConfig(**options), runtime=QUIET)
    assert objects(f"{bucket}/store") == contents(tmp_path / "store")


def test_the_commands_of_the_page(bucket, model_folder, data_file, capsys):
    page = (Path(__file__).parents[1] / "docs" / "remote.md").read_text("utf-8")
    lines = re.search(r"```sh\n(.*?)```", page, re.S)[1].splitlines()
    names = {"path/to/model": str(model_folder), "data.jsonl": str(data_file), "s3://bucket": bucket}
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("whence ")]
    assert [words[0] for words in commands] == ["build", "query", "verify"]
    for words in commands:
        for name, mine in names.items():
            words = [word.replace(name, mine) for word in words]
        assert main(words) == 0
    assert capsys.readouterr().out.strip().endswith("12 rows in 1 shards, all as sealed")


def test_rows_of_objects_are_deleted(bucket, tmp_path):
    build(f"{bucket}/store")
    build(tmp_path / "here")
    for ids in (["r1"], ["r4", "r5", "r6", "r7"]):
        stores = [delete_rows(folder, ids) for folder in (f"{bucket}/store", tmp_path / "here")]
    assert objects(f"{bucket}/store") == contents(tmp_path / "here")
    assert stores[0].ids() == stores[1].ids() and stores[0].num_deleted == 5 and verify_store(stores[0]) == []
    tables = [whence.score_table(store, make_task(), make_records(3, first=50), runtime=QUIET).scores for store in stores]
    assert torch.equal(*tables)
    located(f"{bucket}/store/deleted-00002.json").unlink()
    with pytest.raises(StoreCorrupt, match="it is missing"):
        open_store(f"{bucket}/store")

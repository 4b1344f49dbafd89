"""Data that is not held in memory: the same dataset, rows and ids as if it were; sharded files with ids that stay."""

import gzip
import io
import json
import random
import re
import tarfile

import numpy as np
import pytest
import torch

import whence
from tests import zoo
from tests.conftest import save_language_model
from tests.settings import QUIET
from tests.test_store import contents, make_records, make_task
from whence.cli import main
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt
from whence.load.tar_shards import stream_records
from whence.pipeline import spool as spool_function
from whence.pipeline.stored.spool import Spooled

spool_module = __import__("sys").modules["whence.pipeline.stored.spool"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(spool_module, "_CHUNK", 5)


def same(one, other):
    assert one.id == other.id and one.length == other.length and (one.source, one.text) == (other.source, other.text)
    assert (one.span, one.prompt, one.scored) == (other.span, other.prompt, other.scored)
    assert one.fields.keys() == other.fields.keys() and one.digest == other.digest
    assert (one.token_spans is None) == (other.token_spans is None)
    assert one.token_spans is None or one.token_spans.tolist() == other.token_spans.tolist()


def texts(count=23):
    generator = random.Random(0)
    words = ["a cat", "the dog", "one bird", "sat", "ran off", "sleeps", "é"]
    return [" ".join(generator.choices(words, k=generator.randint(2, 3))) for _ in range(count)]


@pytest.fixture(scope="module")
def language_task(tmp_path_factory):
    from whence.load import load_task

    return load_task(str(save_language_model(tmp_path_factory.mktemp("models") / "tiny")), long="split")[0]


RECORDS = {
    "texts": texts(),
    "mappings": [{"text": text, "id": f"x{place}", "source": "books"} for place, text in enumerate(texts(11))],
    "prompts": [{"prompt": "a ", "completion": text} for text in texts(7)],
    "windows": [" and ".join(texts(count)) for count in (1, 3, 9)],
}


@pytest.mark.parametrize("kind", RECORDS)
def test_the_dataset_is_that_of_prepare(language_task, tmp_path, kind):
    wanted = language_task.prepare(RECORDS[kind])
    found = whence.pipeline.spool(language_task, iter(RECORDS[kind]), tmp_path / "spool", quiet=True)
    assert found.ids == wanted.ids and len(found) == len(wanted)
    assert found.fingerprint == wanted.fingerprint == Dataset(list(found.examples)).fingerprint
    for one, other in zip(found.examples, wanted.examples, strict=True):
        same(one, other)
    assert [example.id for example in found.examples[3:6]] == list(wanted.ids[3:6])
    assert found.examples[-1].id == wanted.ids[-1] and found.spread(3).ids == wanted.spread(3).ids
    with pytest.raises(IndexError):
        found.examples[len(found)]


def test_a_store_from_either_is_the_same_and_goes_on_with_the_other(tmp_path):
    task, records = make_task(), make_records(17)
    options = {"method": "lorif", "rank": 4, "rows_per_shard": 4}
    dataset = whence.pipeline.spool(task, records, tmp_path / "spool", quiet=True)
    whence.build(task, dataset, tmp_path / "spooled", config=whence.BuildConfig(**options), runtime=QUIET)
    whence.build(task, records, tmp_path / "held", config=whence.BuildConfig(**options), runtime=QUIET)
    assert contents(tmp_path / "spooled") == contents(tmp_path / "held")
    for path in (tmp_path / "spooled").glob("shards/00002.*"):
        path.unlink()
    (tmp_path / "spooled" / "manifest.json").unlink()
    whence.build(task, records, tmp_path / "spooled", config=whence.BuildConfig(**options), runtime=QUIET)
    assert contents(tmp_path / "spooled") == contents(tmp_path / "held")


def test_texts_cut_otherwise_are_other_examples(language_task, tmp_path, monkeypatch):
    whence.pipeline.spool(language_task, texts(3), tmp_path, quiet=True)
    monkeypatch.setattr(language_task, "long", "error")
    with pytest.raises(BadInput, match="cut otherwise"):
        whence.pipeline.spool(language_task, texts(3), tmp_path, quiet=True)


def test_few_chunks_are_held(tmp_path):
    dataset = whence.pipeline.spool(make_task(), make_records(60), tmp_path / "spool", quiet=True)
    assert isinstance(dataset.examples, Spooled)
    assert [example.id for example in dataset.examples] == [f"r{number}" for number in range(60)]
    assert len(dataset.examples._in_memory) == spool_module._FILES_IN_MEMORY < 60 // 5


def test_a_finished_folder_is_used_again_and_an_unfinished_one_is_made_again(tmp_path):
    task, folder = make_task(), tmp_path / "spool"

    def broken():
        yield from make_records(12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool_function(task, broken(), folder, source="s", quiet=True)
    assert (folder / "00001.json").exists() and not (folder / "spool.json").exists()
    first = spool_function(task, make_records(13), folder, source="s", quiet=True)
    assert spool_function(task, iter(()), folder, source="s", quiet=True).ids == first.ids and len(first) == 13
    with pytest.raises(
        BadInput, match="found examples prepared from other data, by another tokenizer or cut otherwise in .*spool"
    ):
        spool_function(task, make_records(13), folder, source="other", quiet=True)
    path = folder / "00001.json"
    path.write_bytes(path.read_bytes().replace(b"r7", b"r6"))
    with pytest.raises(
        StoreCorrupt, match="found a damaged file .*00001.json of prepared examples; .*do this: delete the folder"
    ):
        spool_function(task, iter(()), folder, source="s", quiet=True)


def test_what_cannot_be_spooled_says_so(tmp_path):
    task, dataset = zoo.make("linear")
    assert len(dataset) == 5
    with pytest.raises(BadInput, match="found record 0 of type tuple to be kept on a disk; needed texts or mappings"):
        whence.pipeline.spool(task, [(torch.randn(4, 6), 1)], tmp_path / "a", quiet=True)
    with pytest.raises(BadInput, match="found no records; needed at least one"):
        whence.pipeline.spool(task, [], tmp_path / "b", quiet=True)


# Files


@pytest.fixture
def shards(tmp_path):
    """The same eight records in each kind of file, two folders deep."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    rows = [{"text": text} for text in texts(8)]
    table = pyarrow.Table.from_pylist(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    pyarrow.parquet.write_table(table, folder / "c.parquet", row_group_size=3)
    for name, writer in (("d.arrow", pyarrow.ipc.new_stream), ("deep/e.arrow", pyarrow.ipc.new_file)):
        with writer(str(folder / name), table.schema) as sink:
            sink.write_table(table, max_chunksize=3)
    (folder / "README.txt").write_text("not data")
    return folder


def test_every_kind_of_file_has_the_same_records(shards):
    found = list(stream_records(shards))
    assert [record["text"] for record in found] == texts(8) * 5
    names = ["a.jsonl", "b.jsonl.gz", "c.parquet", "d.arrow", "deep/e.arrow"]
    assert [record["id"] for record in found] == [f"{name}#{row}" for name in names for row in range(8)]
    assert found[9]["source"] == "b.jsonl.gz"
    assert list(stream_records(shards)) == list(stream_records(shards / "**" / "*"))  # again, and by a pattern
    assert [record["id"] for record in stream_records(shards / "c.parquet")] == [f"c.parquet#{row}" for row in range(8)]


def test_ids_stay_when_files_are_added(shards):
    before = {record["id"]: record["text"] for record in stream_records(shards)}
    (shards / "_first.jsonl").write_text('{"text": "new", "id": "mine"}\n')
    after = {record["id"]: record["text"] for record in stream_records(shards)}
    assert after == {"mine": "new", **before}


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", '{"text": "a"}\n{"text'), ("x.jsonl", "[1]\n"), ("x.parquet", "PAR1")]
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=rf"found .*{name}, which cannot be read after \d records .*; do this: mend the file"):
        list(stream_records(tmp_path))


def test_no_files(tmp_path):
    with pytest.raises(
        BadInput, match=r"found no files of data at .*; needed files ending in .jsonl, .jsonl.gz, .parquet, .arrow, .tar"
    ):
        stream_records(tmp_path)


def test_the_command(shards, tmp_path, model_folder, capsys):
    words = ["build", str(model_folder), str(shards), "--method", "logra", "--rank", "2", "--spool", str(tmp_path / "spool")]
    assert main([*words, "-o", str(tmp_path / "store")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 40
    assert whence.open_store(tmp_path / "store").ids()[8] == "b.jsonl.gz#0"
    mark = (tmp_path / "spool" / "00000.json").stat().st_mtime_ns
    assert main([*words, "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "spool" / "00000.json").stat().st_mtime_ns == mark
    (shards / "z.jsonl").write_text('{"text": "new data"}\n')
    assert main([*words, "-o", str(tmp_path / "third")]) == 2
    assert re.search("whence: found examples prepared from other data", capsys.readouterr().err)


# Tar files


def tar(path, members, kind="w"):
    with tarfile.open(path, kind) as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def picture(kind):
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 2, 3) * 10).save(content, kind)
    return content.getvalue()


def test_members_of_a_tar_file_are_grouped_by_key(tmp_path):
    (tmp_path / "deep").mkdir()
    members = [
        ("a/1.txt", "Ä word".encode()), ("a/1.json", b'{"prompt": "Say", "id": "mine"}'), ("a/1.other.txt", b"passed over"),
        ("2.cls", b"3\n"), ("2.png", picture("png")), ("3.TXT", b"third"),
    ]  # fmt: skip
    for name, kind in (("p.tar", "w"), ("deep/q.tar.gz", "w:gz")):
        tar(tmp_path / name, members, kind)
    found = list(stream_records(tmp_path))
    assert [record["id"] for record in found] == ["mine", "deep/q.tar.gz#2", "deep/q.tar.gz#3", "mine", "p.tar#2", "p.tar#3"]
    assert found[0] == {"id": "mine", "source": "deep/q.tar.gz", "text": "Ä word", "prompt": "Say"}
    assert found[1]["label"] == 3 and found[5]["text"] == "third"
    pixels = np.arange(24, dtype=np.float32).reshape(4, 2, 3) * 10 / 255
    np.testing.assert_array_equal(found[4]["inputs"], pixels.transpose(2, 0, 1))


def test_hostile_names_are_only_names(tmp_path):
    link = tarfile.TarInfo("passwords.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    names = ["../../out.txt", "/etc/over.txt", "x\n<script>.txt", "caf\udce9.txt"]
    file = tar(tmp_path / "p.tar", [(link, b""), *((name, b"text") for name in names)])
    before = sorted(tmp_path.parent.rglob("*"))
    found = list(stream_records(file))
    assert [record["id"] for record in found] == ["p.tar#../../out", "p.tar#/etc/over", "p.tar#x\n<script>", "p.tar#caf\ufffd"]
    assert sorted(tmp_path.parent.rglob("*")) == before and {record["text"] for record in found} == {"text"}
    json.dumps([record["id"] for record in found], ensure_ascii=False).encode()  # as stores keep it


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("1.txt", b"\xff")], "utf-8"),
        ([("1.cls", b"cat")], "invalid literal"),
        ([("1.json", b"[1]")], "a .json of type list, not a mapping"),
        ([("1.png", b"no image")], "cannot identify image"),
        ([("1.npy", b"x"), ("2.txt", b"x")], "nothing of a known kind for '1'"),
        ([("1.txt", b"x"), ("1.json", b'{"text": "y"}')], "two members with 'text' for '1'"),
    ],
)
def test_a_wrong_member_is_named(tmp_path, members, why):
    file = tar(tmp_path / "p.tar", members)
    with pytest.raises(BadInput, match=rf"found .*p.tar, which cannot be read after 0 records \(.*{why}"):
        list(stream_records(file))


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_a_tar_file_that_is_cut_short_is_noticed(tmp_path, kind):
    file = tar(
        tmp_path / "p.tar", [(f"{row}.txt", random.Random(row).randbytes(4000).hex().encode()) for row in range(4)], kind
    )
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadInput, match=r"found .*p.tar, which cannot be read after \d records"):
        list(stream_records(file))


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_no_cut_of_a_tar_file_is_read_as_a_shorter_one(tmp_path, kind, form):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=kind, format=form) as file:
        for row in range(6):
            text = random.Random(row).randbytes(random.Random(row).choice([0, 200, 256, 700])).hex().encode()
            info = tarfile.TarInfo(f"{'long' * 40 if row % 2 else ''}{row}.txt")
            info.size = len(text)
            file.addfile(info, io.BytesIO(text))
    whole, path = content.getvalue(), tmp_path / "p.tar"
    path.write_bytes(whole)
    records = list(stream_records(path))
    assert len(records) == 6
    cuts = random.Random(1).sample(range(len(whole)), 40)
    for cut in {*cuts, *range(0, len(whole), 1024)} if kind == "w" else cuts:
        path.write_bytes(whole[:cut])
        try:
            assert list(stream_records(path)) == records  # nothing but the zeros after the end is missing
            assert kind == "w" and not any(whole[cut - 1024 :])
        except BadInput as error:
            assert "p.tar, which cannot be read after" in str(error)


def test_what_follows_the_end_of_a_tar_file_is_not_passed_over(tmp_path):
    one = tar(tmp_path / "one.tar", [("1.txt", b"x")])
    content = one.read_bytes()
    one.write_bytes(content * 2)
    with pytest.raises(BadInput, match="more after the end of the archive, such as a second archive"):
        list(stream_records(one))
    damaged = bytearray(tar(one, [("1.txt", b"x"), ("2.txt", b"y")]).read_bytes())
    damaged[1024 + 150] ^= 1  # in the second header's checksum, after which `tarfile` finds an end
    one.write_bytes(damaged)
    with pytest.raises(
        BadInput, match="cannot be read after . records .bad checksum where a member or the end of the archive should be"
    ):
        list(stream_records(one))


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.parquet", "d.arrow", "deep/e.arrow"])
def test_no_cut_of_another_file_is_read_as_a_shorter_one(shards, name):
    path = shards / name
    whole = path.read_bytes()
    boundaries = [place for place in range(len(whole)) if whole.startswith(b"\xff\xff\xff\xff", place)]  # of messages of Arrow
    for cut in {0, 1, 8, *boundaries, *random.Random(0).sample(range(len(whole)), 40), len(whole) - 1}:
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match="which cannot be read after"):
            list(stream_records(path))


def test_records_that_cannot_be_used_are_left_out_of_a_spool(language_task, tmp_path, monkeypatch):
    monkeypatch.setattr(language_task, "skip_bad", True)
    records = [{"text": text, "id": f"x{place}"} for place, text in enumerate(texts(12))]
    records[4]["text"], records[7] = None, {"body": "?", "id": "x7"}
    held = language_task.prepare(records)
    found = whence.pipeline.spool(language_task, records, tmp_path / "spool", quiet=True)
    assert found.fingerprint == held.fingerprint and len(found) == 10
    again = whence.pipeline.spool(language_task, iter(()), tmp_path / "spool", quiet=True)
    assert [record.id for record in again.skipped] == [record.id for record in found.skipped] == ["x4", "x7"]
    assert found.skipped[0].reason.startswith("record 4 with a 'text' of type NoneType")
    monkeypatch.setattr(language_task, "skip_bad", False)
    with pytest.raises(BadInput, match="cut otherwise"):
        whence.pipeline.spool(language_task, records, tmp_path / "spool", quiet=True)
    with pytest.raises(BadInput, match=r"record 4 with a 'text' of type NoneType \(id 'x4'\)"):
        whence.pipeline.spool(language_task, records, tmp_path / "other", quiet=True)


def test_a_dataset_that_answers_any_number_is_spooled_to_its_length(language_task, tmp_path):
    class Numbered(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, number):
            return "a cat sat"[number % 3 :]

    assert len(whence.pipeline.spool(language_task, Numbered(), tmp_path / "spool", quiet=True)) == 7


def test_a_build_from_tar_files_goes_on_exactly(language_task, tmp_path):
    for part in range(2):
        tar(tmp_path / f"p-{part}.tar", [(f"{row:03d}.txt", text.encode()) for row, text in enumerate(texts(11))])
    options = {"method": "logra", "rank": 2, "rows_per_shard": 4, "batch_positions": 64}
    records = stream_records(tmp_path)
    whence.build(language_task, list(records), tmp_path / "held", config=whence.BuildConfig(**options), runtime=QUIET)
    dataset = whence.pipeline.spool(language_task, records, tmp_path / "spool", source=records.identity, quiet=True)
    whence.build(language_task, dataset, tmp_path / "store", config=whence.BuildConfig(**options), runtime=QUIET)
    assert contents(tmp_path / "store") == contents(tmp_path / "held")
    for path in [*(tmp_path / "store").glob("shards/00002.*"), tmp_path / "store" / "manifest.json"]:
        path.unlink()
    again = whence.pipeline.spool(
        language_task, iter(()), tmp_path / "spool", source=records.identity, quiet=True
    )  # not read again
    store = whence.build(language_task, again, tmp_path / "store", config=whence.BuildConfig(**options), runtime=QUIET)
    assert contents(tmp_path / "store") == contents(tmp_path / "held") and store.ids()[11] == "p-1.tar#000"


def test_a_dataset_that_can_only_be_iterated_over(language_task, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": text, "id": f"row {place}"} for place, text in enumerate(texts(9))]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    held = language_task.prepare(rows)
    assert language_task.prepare(stream).fingerprint == held.fingerprint
    spooled = whence.pipeline.spool(language_task, stream, tmp_path / "spool", quiet=True)
    assert spooled.fingerprint == held.fingerprint and spooled.ids == held.ids

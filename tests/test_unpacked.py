"""Compressed data: what stands for far more than it can honestly hold is refused before it fills the memory."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc

import numpy as np
import pytest

from whence.errors import BadInput
from whence.load import load_records, stream_records
from whence.load import unpacked as unpacked_module

MEGABYTE = 1 << 20
BOMBS = {
    "one line without end": b'{"text": "' + bytes(32 * MEGABYTE),
    "empty lines": b"\n" * (2 * MEGABYTE),
    "small records": b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * (MEGABYTE // 16),
}


def in_tar(name, content):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return held.getvalue()


def peak_of(reading):
    """Megabytes that Python held at most; the error that it ends with has to be ours."""
    tracemalloc.start()
    with pytest.raises(BadInput, match="cannot be read") as told:
        for _ in reading():
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / MEGABYTE, str(told.value)


@pytest.mark.parametrize("name", BOMBS)
def test_lines_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(unpacked_module, "LONGEST_RECORD", 2 * MEGABYTE)
    monkeypatch.setattr(unpacked_module, "_FREE_BYTES", MEGABYTE // 4)
    monkeypatch.setattr(unpacked_module, "_RATIO", 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(BOMBS[name], 9))
    peak, told = peak_of(lambda: stream_records(path))
    assert peak < 16
    assert "bytes that unpack to more than" in told or "a line of more than 2,097,152 characters" in told


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(unpacked_module, "_FREE_BYTES", MEGABYTE)
    monkeypatch.setattr(unpacked_module, "_RATIO", 20)
    path = tmp_path / "bomb.tar.gz"
    for member in ("1.txt", "1.other"):  # what is passed over is unpacked, too
        path.write_bytes(pack(in_tar(member, bytes(16 * MEGABYTE))))
        peak, told = peak_of(lambda: stream_records(path))
        assert peak < 12 and "bytes that unpack to more than" in told


def test_a_member_is_not_longer_than_a_record_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr("whence.load.tar_shards.LONGEST_RECORD", MEGABYTE)
    (tmp_path / "a.tar").write_bytes(in_tar("1.txt", bytes(2 * MEGABYTE)))
    peak, told = peak_of(lambda: stream_records(tmp_path / "a.tar"))
    assert peak < 4 and "a member of 2,097,152 bytes, more than 1,048,576" in told


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked_module, "_FREE_BYTES", MEGABYTE)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, X=np.zeros((1 << 20, 16), np.float32), y=np.zeros(1 << 20, np.int8))
    peak, told = peak_of(lambda: load_records(str(path)))
    assert peak < 8 and "bytes that unpack to more than" in told


def test_dull_files_are_read_all_the_same(tmp_path):
    line = json.dumps({"text": "the same again and again"}) + "\n"
    path = tmp_path / "dull.jsonl.gz"
    path.write_bytes(gzip.compress(line.encode() * 60_000, 9))
    assert sum(1 for _ in stream_records(path)) == 60_000
    np.savez_compressed(tmp_path / "dull.npz", X=np.zeros((20_000, 64), np.float32), y=np.zeros(20_000, np.int64))
    assert len(load_records(str(tmp_path / "dull.npz"))) == 20_000

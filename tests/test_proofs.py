"""What a store commits to: the tree of RFC 6962, proofs of what is in it and what is not, and every changed byte found."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whence
from tests.reference import merkle as slow
from tests.settings import QUIET
from tests.test_store import SMALL, make_records, make_task
from whence.cli import main
from whence.errors import BadInput
from whence.ledger import read_proof, write_proof
from whence.pipeline import refit
from whence.store import (
    check_proof,
    committed,
    delete_rows,
    documents,
    open_store,
    prove,
    read_json,
    sha256_of,
    verify_store,
    write_json,
    write_record,
)
from whence.store.documents import documents_of, tree_of
from whence.store.merkle import audit_path, leaf_hash, root_by_path, tree_hash

TEXTS = [(f"doc-{number}", f"text {number % 11}") for number in range(13)]  # two of them are there twice


class Documents:
    """As much of a store as proofs need."""

    folder = blueprint = None

    def examples(self):
        return iter([{"id": name, "length": 1, "text": text} for name, text in TEXTS])


@pytest.mark.parametrize("count", [*range(1, 20), 33])
def test_the_tree_is_that_of_the_rfc(count):
    contents = [f"leaf {number}".encode() for number in range(count)]
    leaves = [leaf_hash(content) for content in contents]
    root = tree_hash(leaves)
    assert root == slow.tree_hash(contents)
    for index in range(count):
        path = audit_path(leaves, index)
        assert path == slow.audit_path(index, contents) and root_by_path(leaves[index], index, count, path) == root
        for wrong_index, wrong_count, wrong_path in (
            ((index + 1) % count, count, path), (index, count, [*path, root]), (index, count, path[:-1]), (index, index, path),
        ):  # fmt: skip
            if (wrong_index, wrong_count, wrong_path) != (index, count, path):
                assert root_by_path(leaves[index], wrong_index, wrong_count, wrong_path) != root
    assert tree_hash([]) == slow.tree_hash([])


@pytest.mark.parametrize("at_once", [1 << 24, 5, 1])
def test_the_commitment_is_that_of_the_slow_twin(monkeypatch, at_once):
    monkeypatch.setattr(documents, "_AT_ONCE", at_once)  # so several passes
    assert documents_of(Documents().examples) == documents.Documents(13, slow.documents_root(TEXTS))
    assert slow.documents_root(TEXTS[::-1]) == slow.documents_root(TEXTS) != slow.documents_root(TEXTS[1:])


@pytest.mark.parametrize("name", [*dict(TEXTS), "doc-13", "", "é\ud800"])
def test_every_id_is_proven_to_be_in_or_not(name):
    proof = prove(Documents(), id=name)
    assert check_proof(proof, root=slow.documents_root(TEXTS)) == [] and proof.is_in == (name in dict(TEXTS))
    if proof.is_in:
        assert proof.text == hashlib.sha256(dict(TEXTS)[name].encode()).hexdigest()


@pytest.mark.parametrize("number", range(15))
def test_every_text_is_proven_to_be_in_or_not(number):
    proof = prove(Documents(), text=f"text {number}")
    root = slow.documents_root(TEXTS)
    assert check_proof(proof, root=root, text=f"text {number}") == [] and proof.is_in == (number < 11)
    assert "text: it is of another text" in check_proof(proof, root=root, text="another")[0]


def test_a_proof_shows_no_other_document():
    """Of the neighbours a hash of the id and a blinded value: neither the id nor the text, nor its digest."""
    for proof in (prove(Documents(), id="absent"), prove(Documents(), id="doc-3"), prove(Documents(), text="absent")):
        written = json.dumps(proof.__dict__, default=lambda each: each.__dict__)
        for name, text in TEXTS:
            if name != proof.id:
                assert f'"{name}"' not in written and hashlib.sha256(name.encode()).hexdigest() not in written
            if hashlib.sha256(text.encode()).hexdigest() != proof.text:
                assert hashlib.sha256(text.encode()).hexdigest() not in written
    tree = tree_of(Documents().examples)
    assert tree.secret.hex() not in json.dumps(prove(Documents(), id="doc-3").blind)


def forged(proof, **change):
    return replace(proof, **change)


def test_a_document_that_is_there_cannot_be_proven_away():
    root = slow.documents_root(TEXTS)
    for name in ("absent", "doc-3"):
        proof = prove(Documents(), id=name)
        for other in ("doc-3", "doc-4", "absent"):
            claims = [forged(proof, id=other), forged(proof, id=other, is_in=not proof.is_in)]
            for claim in claims:
                if (claim.id, claim.is_in) != (proof.id, proof.is_in):
                    assert check_proof(claim, root=root), (name, other, claim.is_in)
    gap = prove(Documents(), id="absent")
    alone = [forged(gap, openings=(opening,)) for opening in gap.openings]
    far = [
        forged(gap, openings=(gap.openings[0], prove(Documents(), id=f"doc-{n}").openings[0]), id="doc-3") for n in range(13)
    ]
    for claim in [
        *alone,
        *far,
        forged(gap, openings=gap.openings[::-1]),
        forged(gap, openings=()),
        forged(gap, leaves=99),
        forged(gap, root=""),
    ]:
        assert check_proof(claim, root=root)


@pytest.fixture
def built(tmp_path):
    whence.build(
        make_task(), make_records(18), tmp_path / "store", config=whence.BuildConfig(method="logra", **SMALL), runtime=QUIET
    )
    return tmp_path / "store"


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proofs")
    for name in ("doc-3", "absent"):
        write_proof(prove(Documents(), id=name), folder / f"{name}.json")
    return folder


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["doc-3", "absent"]), st.data())
def test_one_changed_byte_of_a_proof_is_found(proofs, name, data):
    content = (proofs / f"{name}.json").read_bytes()
    at, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    (proofs / "broken.json").write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    try:
        proof = read_proof(proofs / "broken.json")
    except BadInput:
        return
    faults = check_proof(proof, root=slow.documents_root(TEXTS))
    # What it says is still true of another id that is not there, or it is found.
    assert faults or not proof.is_in and proof.id not in dict(TEXTS)


def root_of(folder):
    store = open_store(folder)
    recorded = committed(store)
    assert recorded == documents_of(store.examples) and recorded.count == len(store)
    return recorded.root


def test_the_root_follows_what_is_done_to_a_store(built, tmp_path):
    first = root_of(built)
    config = whence.BuildConfig(method="logra", **SMALL)
    whence.build(make_task(), make_records(9, first=18), built, append=True, config=config, runtime=QUIET)
    grown = root_of(built)
    delete_rows(built, ["r1", "r20"])
    deleted = root_of(built)
    delete_rows(built, ["r5"])
    assert len({first, grown, deleted, root_of(built)}) == 4
    before = root_of(built)
    refit(built, make_task(), make_records(27), quiet=True)
    assert root_of(built) == before  # the same documents
    left = [record for record in make_records(27) if record["id"] not in ("r1", "r20", "r5")]
    whence.build(make_task(), left, tmp_path / "fresh", config=config, runtime=QUIET)
    assert root_of(tmp_path / "fresh") == before
    assert not prove(open_store(built), id="r5").is_in and prove(open_store(built), id="r6").is_in


def test_another_root_is_found(built, capsys):
    (path,) = built.glob("documents-*.json")
    content = path.read_bytes()
    path.write_bytes(content.replace(root_of(built).encode(), b"0" * 64))
    assert any(path.name in fault for fault in verify_store(open_store(built, check=False)))
    # Also if everything is sealed anew.
    write_record(path, {"count": 18, "root": "0" * 64})
    manifest = read_json(built / "manifest.json")
    manifest["files"][path.name] = sha256_of(path)
    write_json(built / "manifest.json", manifest)
    assert any("root is not that of the 18 documents" in fault for fault in verify_store(open_store(built)))
    assert main(["prove", str(built), "--id", "r1", "--output", str(built.with_name("p.json"))]) == 2
    assert "a commitment to 000000000000" in capsys.readouterr().err
    del manifest["files"][path.name]
    write_json(built / "manifest.json", manifest)
    assert committed(open_store(built)) is None and verify_store(open_store(built)) == []  # of an earlier version


def test_the_verbs(built, tmp_path, run, capsys):
    root, path = root_of(built), tmp_path / "proof.json"
    assert "the id 'r3' is among 18 documents" in run("prove", built, "--id", "r3", "--output", path)
    assert "is among 18 documents" in run("verify", path, "--root", root)
    assert "anybody can make a tree" in run("verify", path)
    assert f"root  {root} of 18 documents" in run("inspect", built)
    assert json.loads(run("prove", built, "--id", "r99", "--output", path, "--json"))["is_in"] is False
    assert main(["verify", str(path), "--root", "0" * 64]) == 1 and "not of the published 0000" in capsys.readouterr().out
    (tmp_path / "work.txt").write_text("nowhere")
    run("prove", built, "--text", tmp_path / "work.txt", "--output", path)
    assert "not among" in run("verify", path, "--root", root, "--text", tmp_path / "work.txt")
    for words, why in (
        (["prove", built], "neither id nor text"),
        (["prove", built, "--id", "a", "--text", tmp_path / "work.txt"], "an id and a text"),
        (["prove", built, "--text", tmp_path / "none.txt"], "no text in"),
        (["verify", built, "--root", root], "--root for the store"),
        (["verify", path, "--seal", "x"], "--seal for the proof"),
        (["verify", path, "--key", "0" * 64], "--key for the proof"),
        (["verify", path, "--trust"], "--trust for the proof"),
    ):
        assert main(list(map(str, words))) == 2 and why in capsys.readouterr().err
    path.write_text("{}\n")
    assert main(["verify", str(path)]) == 2 and "which is no proof" in capsys.readouterr().err

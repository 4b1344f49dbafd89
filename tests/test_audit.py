"""An audit says what a store knows, says what it does not know, and says the same every time."""

import csv
import json
import shutil

import pytest

import whence
from tests.settings import QUIET
from whence.audit import audit
from whence.errors import UnknownOption
from whence.load import load_task
from whence.store import delete_rows

SITE = "https://example.org/page/{}"
ODD = "a|b <script>alert(1)</script>\n# heading"


@pytest.fixture(scope="module")
def store(model_folder, tmp_path_factory):
    task, origin = load_task(str(model_folder))
    sources = {0: ODD, 1: "=1+1", 2: ""} | {n: SITE.format(n) for n in range(3, 20)}
    texts = [{"id": f"t{n}", "text": f"the cat sat {n} times", "source": sources.get(n, f"book {n % 30}")} for n in range(80)]
    return whence.build(task, texts, tmp_path_factory.mktemp("audit") / "s", runtime=QUIET, origin=origin)


def test_facts_are_those_of_the_store(store, tmp_path, model_folder):
    files = audit(store.folder, tmp_path)
    text = files.markdown.read_text()
    known = dict(
        line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ") and " | " in line[2:-2]
    )
    assert known["Digest of its weights"] == store.blueprint.model and known["1.2 Model, as it was loaded"] == model_folder.name
    assert str(model_folder) not in text  # where files lie is nobody's business
    assert known["Size of this data"].startswith("80 documents, ") and known["1.3 Modalities of this data"] == "text"
    assert known["example.org"].startswith("17 | 21.2% | ")
    assert known["Sources"] == "49 named sources; 1 documents have none"
    assert known["Check of all files (`whence verify`)".replace("`", "\\`")] == "every file is as it was sealed"
    (measured,) = whence.store.read_fidelity(store).values()
    assert f"{measured.learned.spearman[0]:.3f} [" in text.replace("\\", "")
    assert "control: shared words (BM25)" in text
    assert "1.1 Provider" in files.unknown and "3.1 Reservations of rights" in files.unknown and not files.faults
    assert all(f"| {name} | Not known from the store. To be added: " in text.replace("\\", "") for name in files.unknown)
    rows = list(csv.reader(files.sources.open(newline="")))
    assert len(rows) == 1 + 49 + 1 and ["'=1+1", "1"] in [row[:2] for row in rows]
    assert sum(int(row[1]) for row in rows[1:]) == 80


def test_names_are_shown_and_never_run(store, tmp_path):
    files = audit(store, tmp_path)
    assert "<script>" not in files.page.read_text() and "<script>" not in files.markdown.read_text()
    assert "\n# heading" not in files.markdown.read_text()


def test_the_same_store_gives_the_same_bytes(store, tmp_path):
    first, second = audit(store, tmp_path / "a"), audit(store.folder, tmp_path / "b")
    for one, other in zip(
        (first.markdown, first.page, first.sources), (second.markdown, second.page, second.sources), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_what_is_missing_is_said(model_folder, tmp_path, run):
    task, _ = load_task(str(model_folder))
    texts = [{"id": f"t{n}", "text": f"the cat sat {n} times"} for n in range(12)]
    whence.build(task, texts, tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    delete_rows(tmp_path / "s", ["t3"])
    said = json.loads(run("audit", tmp_path / "s", "-o", tmp_path / "out", "--json"))
    assert {"Sources", "Agreement with exact scores", "1.2 Model, as it was loaded"} <= set(said["unknown"])
    text = (tmp_path / "out" / "audit.md").read_text()
    assert "11 documents; 1 more were deleted" in text and "1 deleted documents are left out" in text


def test_a_damaged_store_is_told_and_ends_with_a_status(store, tmp_path, run):
    shutil.copytree(store.folder, tmp_path / "s")
    shard = next((tmp_path / "s" / "shards").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "audit.md" in run("audit", tmp_path / "s", "-o", tmp_path / "out", status=1)
    assert "1 faults: " in (tmp_path / "out" / "audit.md").read_text()


def test_another_template_is_refused(store, tmp_path):
    with pytest.raises(UnknownOption, match="one of: ai-act"):
        audit(store, tmp_path, template="other")  # pyright: ignore[reportArgumentType]

"""The report of shares: what the record holds, that tampering is found, the verb, the page."""

import csv
import hashlib
import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import whence
from tests.test_serve import logged
from tests.test_shares import SOURCES, drawn, table
from whence.cli import main
from whence.errors import BadInput, StoreMismatch
from whence.evaluate import load_table, origin_of_table, save_table
from whence.ledger import chained, credit_of, period_of, periods, read_signer
from whence.serve.log import QueryLog
from whence.settings import SharesConfig
from whence.shares.sealing import sealed_folder
from whence.store import committed, open_store


def saved(folder, table, *, model="weights"):
    save_table(table, folder, origin={"models": [model], "data": ["data"], "queries": "queries", "whence": "0"})
    return folder


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"id": name, "licence": source, "source": "one"}) for name, source in SOURCES.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def report(tmp_path, records):
    """A report of three models, with its seal."""
    tables = [saved(tmp_path / f"t{m}", table(drawn(seed=m) + drawn(seed=9)), model=f"w{m}") for m in range(3)]
    found = whence.shares.shares(
        tables,
        SOURCES,
        carried={"x": "3"},
        config=SharesConfig(several="models", payout="1000.00 EUR", minimum="200"),
    )
    folder = tmp_path / "report"
    return folder, whence.shares.write_shares(found, folder, inputs={"records": records}, signed_off_by="A. Auditor")


FILES = (
    "record.json", "record.sha256", "shares.json", "shares.csv", "queries.csv", "report.html", "sources.jsonl",
    *(f"tables/{m}/{name}" for m in (1, 2, 3) for name in ("scores.npy", "table.json")),
)  # fmt: skip


def test_a_report_that_holds(report, run):
    folder, seal = report
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(FILES)
    assert whence.shares.verify_shares(folder, seal=seal) == whence.shares.ShareCheck((), (), 5, 5)
    assert "5 sources, 5 queries; all files as recorded, all figures computed again" in run("verify", folder, "--seal", seal)
    assert json.loads(run("verify", folder, "--json"))["faults"] == []
    assert "note: no seal was given" in run("verify", folder)
    # What `sha256sum --check` would say.
    assert (folder / "record.sha256").read_text() == f"{seal}  record.json\n"
    assert hashlib.sha256((folder / "record.json").read_bytes()).hexdigest() == seal


def test_the_record_names_everything(report, records):
    folder, _ = report
    record = json.loads((folder / "record.json").read_text())
    assert record["models"] == ["w0", "w1", "w2"] and record["data"] == ["data"] and record["signed_off_by"] == "A. Auditor"
    assert record["inputs"]["records"] == {"path": str(records), "sha256": hashlib.sha256(records.read_bytes()).hexdigest()}
    assert set(record["outputs"]) == set(FILES) - {"record.json", "record.sha256"}
    assert record["settings"]["payout"] == "1000.00 EUR" and record["settings"]["carried"] == {"x": "3.00"}
    assert set(record["versions"]) == {"whence", "python", "torch", "numpy"} and record["command"] is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_tampering_with_any_file_is_found(report, run, name, damage):
    folder, seal = report
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    if name == "record.json":
        assert main(["verify", str(folder), "--seal", seal]) in (1, 2)
        return
    faults = run("verify", folder, status=1)
    assert name.rpartition("/")[2] in faults and ("missing" in faults or "checksum" in faults)


def test_no_damage_to_the_record_is_missed_or_ends_in_a_traceback(report):
    folder, _ = report
    content = (folder / "record.json").read_bytes()
    for place in range(0, len(content), 29):
        (folder / "record.json").write_bytes(content[:place] + bytes([content[place] ^ 3]) + content[place + 1 :])
        try:
            faults = whence.shares.verify_shares(folder).faults
        except BadInput as error:
            faults = (str(error),)
        assert "record" in faults[0]


def test_a_file_too_many_is_found_but_a_signature_is_not(report):
    folder, _ = report
    (folder / "record.json.sig").write_text("signature")
    assert whence.shares.verify_shares(folder).faults == ()
    (folder / "tables" / "more.csv").write_text("1")
    assert [fault.partition(": ")[2] for fault in whence.shares.verify_shares(folder).faults] == ["it is not in the record"]


def sealed_again(folder):
    """What a forger would do: all digests made to fit."""
    record = json.loads((folder / "record.json").read_text())
    for name in record["outputs"]:
        record["outputs"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "record.json").write_text(json.dumps(record))
    digest = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
    (folder / "record.sha256").write_text(f"{digest}  record.json\n")


def test_figures_that_do_not_follow_are_found_under_a_seal_of_their_own(report):
    folder, seal = report
    content = json.loads((folder / "shares.json").read_text())
    content["lines"][1]["payout"]["paid"] = "999.99"
    (folder / "shares.json").write_text(json.dumps(content))
    sealed_again(folder)
    assert whence.shares.verify_shares(folder).faults == (
        f"{folder / 'shares.json'}: lines[1].payout.paid does not follow from the scores",
    )
    faults = whence.shares.verify_shares(folder, seal=seal).faults
    assert len(faults) == 2 and "not the one that was kept" in faults[0]


@pytest.mark.parametrize("name", ["shares.csv", "queries.csv"])
def test_a_row_that_does_not_follow_is_found(report, name):
    folder, _ = report
    rows = (folder / name).read_text().splitlines()
    rows[2] = rows[2].replace("source ", "sauce ", 1)
    (folder / name).write_text("\r\n".join(rows) + "\r\n")
    sealed_again(folder)
    assert whence.shares.verify_shares(folder).faults == (f"{folder / name}: line 3 does not follow from the scores",)
    (folder / name).write_text("\r\n".join(rows[:2]) + "\r\n")
    sealed_again(folder)
    assert whence.shares.verify_shares(folder).faults == (f"{folder / name}: line 3 does not follow from the scores",)


def test_other_scores_other_sources_and_other_settings_are_found(report):
    folder, _ = report
    for name, old, new in (("sources.jsonl", "source 1", "source 2"), ("record.json", '"positive"', '"signed"')):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        (folder / name).write_text((folder / name).read_text().replace(old, new))
        sealed_again(folder)
        assert any("does not follow from the scores" in fault for fault in whence.shares.verify_shares(folder).faults)
        for path, content in before.items():
            path.write_bytes(content)
    save_table(load_table(folder / "tables" / "1"), folder / "tables" / "1")
    sealed_again(folder)
    assert whence.shares.verify_shares(folder).faults == (), "an equal table is an equal table"
    save_table(table(drawn(seed=5)), folder / "tables" / "1")
    sealed_again(folder)
    assert any("shares.json" in fault for fault in whence.shares.verify_shares(folder).faults)


def test_scores_that_cannot_be_read_again(report):
    folder, _ = report
    (folder / "sources.jsonl").write_text('{"id": "d0"}\n')
    assert any(
        "cannot be computed again (found a line without id and source" in f for f in whence.shares.verify_shares(folder).faults
    )


def test_figures_that_are_not_json(report):
    folder, _ = report
    (folder / "shares.json").write_text("[")
    said = (
        "cannot be computed again (found a file that cannot be read, or has another content than a report's; needed the files"
    )
    assert any(said in fault for fault in whence.shares.verify_shares(folder).faults)


def test_inputs_changed_and_gone(report, records):
    folder, seal = report
    content = records.read_text()
    records.write_text(content.replace("source 1", "source 2"))
    assert whence.shares.verify_shares(folder, seal=seal).faults == (f"{records}: the input records is no longer what it was",)
    records.unlink()
    shutil.rmtree(records.parent / "t0")
    found = whence.shares.verify_shares(folder, seal=seal)
    assert found.faults == () and len(found.notes) == 2
    assert all("is not there to be checked" in note for note in found.notes)


def test_inputs_elsewhere_are_opened_where_a_person_says_they_are(report, records, run, tmp_path_factory):
    folder, _ = report
    moved = tmp_path_factory.mktemp("elsewhere") / "report"
    shutil.copytree(folder, moved)
    assert f"note: input records lies elsewhere and was not opened: {records}; --inputs records=PATH" in run("verify", moved)
    named = ("verify", moved, "--inputs", f"records={records}")
    assert "input records" not in run(*named)
    records.write_text(records.read_text() + "\n{}")
    assert f"{records}: the input records is no longer what it was" in run(*named, status=1)
    for wrong in ("records", "=a", "records="):
        assert "needed NAME=PATH, every name once" in run("verify", moved, "--inputs", wrong, status=2)
    message = run("verify", moved, "--inputs", f"record={records}", status=2)
    assert "found inputs named 'record'; needed inputs that the record has: records" in message


def test_no_record(tmp_path, run):
    whole = (
        '{"settings": {"weights": {}}, "inputs": {}, "outputs": {}, "tables": {}, "store": null, "format": "whence shares 9"}'
    )
    for content, why in (
        ("{}", "it is incomplete"),
        ("nonsense", "it is not JSON"),
        ("[]", "it is incomplete"),
        (whole, "it is incomplete, or of another format"),
    ):
        (tmp_path / "record.json").write_text(content)
        message = run("verify", tmp_path, status=2)
        assert f"which is no record of shares: {why}; needed" in message and "Traceback" not in message
    with pytest.raises(BadInput, match="no record of shares: it cannot be read; needed"):
        whence.shares.verify_shares(tmp_path / "nowhere")


def test_refusals(tmp_path, report):
    folder, _ = report
    found = whence.shares.shares(table(drawn()), SOURCES)
    with pytest.raises(BadInput, match="something at .*report already; needed a new folder"):
        whence.shares.write_shares(found, folder)
    same = whence.shares.shares(
        [tmp_path / "t0", saved(tmp_path / "u", table(drawn()), model="w0")],
        SOURCES,
        config=SharesConfig(several="models"),
    )
    with pytest.raises(BadInput, match="two tables of one and the same model"):
        whence.shares.write_shares(same, tmp_path / "new")
    (tmp_path / "evaluation.json").write_text('{"rows": [{"method": "other"}]}')
    with pytest.raises(BadInput, match="evaluation.json, which is no evaluation of 'm'; needed what"):
        whence.shares.write_shares(found, tmp_path / "new", validated=tmp_path / "evaluation.json")
    assert not (tmp_path / "new" / "record.json").exists()


def test_evidence_is_named_with_its_figures(tmp_path):
    row = {"method": "m", "lds": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    (tmp_path / "e.json").write_text(json.dumps({"rows": [row], "num_subsets": 64, "summary": "64 subsets"}))
    found = whence.shares.shares(table(drawn()), SOURCES)
    whence.shares.write_shares(found, tmp_path / "r", validated=tmp_path / "e.json")
    page = (tmp_path / "r" / "report.html").read_text()
    assert "over 64 subsets" in page and "0.500 [0.400, 0.600]" in page and "Not validated" not in page
    whence.shares.write_shares(found, tmp_path / "s")
    assert "Not validated by retraining" in (tmp_path / "s" / "report.html").read_text()


def test_names_from_the_data_can_do_no_harm(tmp_path):
    hostile = "<script>alert(1)</script>"
    found = whence.shares.shares(table([[2.0, 1.0, 1.0]]), {"d0": hostile, "d1": '=HYPERLINK("http://x")', "d2": "-1+1"})
    whence.shares.write_shares(found, tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "HYPERLINK(&quot;http://x&quot;)" in page
    names = [row["name"] for row in csv.DictReader((tmp_path / "r" / "shares.csv").open(newline=""))][:3]
    assert set(names) == {hostile, '\'=HYPERLINK("http://x")', "'-1+1"}
    assert whence.shares.verify_shares(tmp_path / "r").faults == ()


def test_a_page_for_each_kind_of_report(tmp_path):
    many = {f"d{n}": f"source {n}" for n in range(40)}
    for name, found, words in (
        ("one", whence.shares.shares(table(drawn(1)), SOURCES), ["there is no interval", "No noise floor: among 40 examples"]),
        ("off", whence.shares.shares(table(drawn(1)), SOURCES, config=SharesConfig(floor="off")),
         ["No noise floor was set, so small scores"]),
        ("many", whence.shares.shares(table(drawn(60)), many, config=SharesConfig(floor=0.5)),
         ["15 more sources", "10 more queries", "than 0.5 (nats)"]),
        ("paid", whence.shares.shares(table(drawn()), SOURCES, config=SharesConfig(payout="10 EUR", minimum="3")),
         ["Held back for", "bootstrap over 5"]),
        (
            "models",
            whence.shares.shares(
                [table(drawn(seed=m)) for m in range(3)], SOURCES, config=SharesConfig(several="models", floor_errors=1.0)
            ),
            ["jackknife over 3", "within 1 standard errors of zero"],
        ),
    ):  # fmt: skip
        whence.shares.write_shares(found, tmp_path / name)
        page = (tmp_path / name / "report.html").read_text()
        assert all(text in page for text in words), name
        assert "not recorded by the tables" in page


# The verb


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder, data_file):
    folder = tmp_path_factory.mktemp("stores") / "store"
    assert main(["build", str(model_folder), str(data_file), "-o", str(folder), "--method", "grad-dot", "--rank", "4"]) == 0
    return folder


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"id": "q0", "text": "a cat sat"}\n{"id": "q1", "text": "the dog ran off"}\n')
    return path


def test_from_a_store_and_queries(run, tmp_path, store, queries, data_file, model_folder):
    copy = shutil.copytree(store, tmp_path / "store")
    out = run("shares", "--store", copy, "--queries", queries, "--by", "id", "-o", tmp_path / "r", "--payout", "10.00 EUR")
    seal = out.split("seal, to be kept elsewhere: ")[1].strip()
    assert "paid" in out and "below the noise floor: no noise floor: among 12 examples" in out
    assert run("verify", tmp_path / "r", "--seal", seal).count("\n") == 1
    record = json.loads((tmp_path / "r" / "record.json").read_text())
    opened = open_store(copy)
    assert record["models"] == [opened.blueprint.model] and record["data"] == [opened.datasets()[0][0]]
    assert record["command"].startswith("whence shares --store") and "'10.00 EUR'" in record["command"]
    # The same through a table, which names its model and data itself.
    run("score", copy, queries, "-o", tmp_path / "t")
    assert origin_of_table(tmp_path / "t")["models"] == [opened.blueprint.model]
    run("shares", tmp_path / "t", "--records", data_file, "--by", "id", "-o", tmp_path / "s", "--payout", "10.00 EUR")
    one, other = (json.loads((tmp_path / name / "shares.json").read_text()) for name in "rs")
    one.pop("gaming"), other.pop("gaming")  # a table alone does not say how long gradients are
    assert one == other and json.loads((tmp_path / "s" / "record.json").read_text())["models"] == record["models"]
    # The store is looked at again, as long as it is there.
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "a cow"}\n')
    run("build", model_folder, more, "-o", copy, "--method", "grad-dot", "--rank", "4", "--append")
    assert "no longer the store that it was (manifest, data changed)" in run("verify", tmp_path / "r", status=1)
    path = next((copy / "shards").glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"cat", b"cow"))
    assert "its checksum is not the sealed one" in run("verify", tmp_path / "r", status=1)
    (copy / "blueprint.json").write_text("{}")
    assert "the store cannot be checked (found a store of format None" in run("verify", tmp_path / "r", status=1)
    shutil.rmtree(copy)
    assert "note: the store is not there to be checked" in run("verify", tmp_path / "r")


def test_the_verb_repeats_the_notes_of_its_table(run, tmp_path, records):
    noted = saved(tmp_path / "t", replace(table(drawn(2)), notes=("damping as the recipe says",)))
    out = run("shares", noted, "--records", records, "--by", "licence", "-o", tmp_path / "r")
    assert "note: damping as the recipe says" in out and "below the noise floor: no noise floor: among 40 examples" in out


def test_attribute_says_what_its_table_is_of(run, tmp_path, model_folder, data_file, queries):
    words = ["attribute", model_folder, data_file, queries, "-o", tmp_path / "t", "--method", "grad-dot-exact"]
    run(*words, "--ensemble", tmp_path / "e")
    origin = origin_of_table(tmp_path / "t")
    assert len(origin["models"]) == len(origin["data"]) == 1 and len(origin["queries"]) == 64
    save_table(load_table(tmp_path / "t"), tmp_path / "u")
    assert origin_of_table(tmp_path / "u") == {}


def test_a_store_of_another(tmp_path, store, queries, data_file):
    opened = open_store(store)
    with pytest.raises(StoreMismatch, match="of other examples than the tables"):
        whence.shares.write_shares(whence.shares.shares(table(drawn()), SOURCES), tmp_path / "r", store=opened)
    mine = whence.ScoreTable(torch.ones(1, 12), ("q",), opened.ids(), "nats", "m")
    found = whence.shares.shares(saved(tmp_path / "t", mine), {"t0": "a"})
    with pytest.raises(StoreMismatch, match="of model .*, and tables of weights"):
        whence.shares.write_shares(found, tmp_path / "r", store=opened)


def test_a_month_of_files_with_weights_and_what_was_carried(run, tmp_path, records):
    days = [saved(tmp_path / day, table(drawn(2, seed=n))) for n, day in enumerate(("mon", "tue"))]
    weights = tmp_path / "weights.csv"
    lines = [f"{day}:q{q},{n + q + 1}" for n, day in enumerate(days) for q in range(2)]
    weights.write_text("id,weight\n" + "\n".join(lines) + "\n")
    words = ["shares", *days, "--several", "queries", "--records", records, "--by", "licence", "--weights", weights]
    money = ["--payout", "100.00 EUR", "--minimum", "20", "--json"]
    first = json.loads(run(*words, *money, "-o", tmp_path / "first"))
    assert len(first["queries"]) == 4 and first["queries"][3]["weight"] == 3.0 and first["seal"]
    assert float(first["payout"]["held"]) > 0
    second = json.loads(run(*words, *money, "--carry", tmp_path / "first", "-o", tmp_path / "second"))
    assert second["payout"]["carried"] == first["payout"]["held"]
    assert run("verify", tmp_path / "second", "--seal", second["seal"])
    (tmp_path / "first" / "shares.csv").unlink()
    message = run(*words, *money, "--carry", tmp_path / "first", "-o", tmp_path / "third", status=2)
    assert "a report to carry from with a fault" in message
    assert "the input carried is no longer what it was" in run("verify", tmp_path / "second", status=1)


def test_what_is_wrong_is_said_in_one_line(run, tmp_path, records, store, queries):
    day = saved(tmp_path / "day", table(drawn(2)))
    plain, new = tmp_path / "plain", ["-o", tmp_path / "new"]
    run("shares", day, "--records", records, "-o", plain)
    bad = tmp_path / "bad.csv"
    bad.write_text("id,weight\nq0,much\n")
    twice = tmp_path / "twice.csv"
    twice.write_text("id,weight\nq0,1\nq0,2\n")
    mine = ["--records", records, *new]
    for words, text in (
        ([day, *mine, "--floor", "low"], "floor"),
        ([*new], "0 tables, no store and no queries"),
        ([day, "--store", store, "--queries", queries, *new], "1 tables, a store and some queries"),
        (["--queries", queries, *new], "needed tables, or a store and queries"),
        ([day, "--model", "m", *mine], "found --model without --queries"),
        ([day, "--store", store, "--split", "test", *new], "found --split without --records; needed records of a Hugging Face"),
        ([day, "--draws", "0", *mine], "found draws=0; needed 1 or more"),
        ([day, *new], "nothing that says whose an example is"),
        ([day, "--records", records, "-o", plain], "something at"),
        ([day, *mine, "--by", "colour"], "no record with the field 'colour'"),
        ([day, *mine, "--weights", bad], "record 0 of"),
        ([day, *mine, "--weights", twice], "two weights for 'q0'"),
        ([day, *mine, "--payout", "10 EUR", "--carry", plain], "shares without a payout to carry from"),
        ([day, *mine, "--rule", "softmax"], "without a temperature"),
        ([tmp_path / "nothing", *mine], "no score table"),
    ):
        message = run("shares", *words, status=2)
        assert text in message and message.strip().count("\n") == 0 and "Traceback" not in message
    assert "--seal for the store" in run("verify", store, "--seal", "x", status=2)
    assert not (tmp_path / "new").exists()


# The page and the example

ROOT = Path(__file__).parents[1]


def answer_in(path, store, *months):
    """A log in which a question was answered in each of some months."""
    log = QueryLog(str(path), retention_days=1e5)
    for number, month in enumerate(months):
        at = period_of(month).since + 5.0
        facts = {"id": month, "time": at, "store": store.digest, "method": "m", "unit": "nats", "token": None, "tokens": 2}
        credit = credit_of(torch.randn(len(store), generator=torch.Generator().manual_seed(number)).numpy(), facts)
        answer = {**logged(month, at, []), "digest": store.digest, "notes": [], "credit": credit.line()}
        log.add([answer])
    log.close()


def test_the_page_runs(run, tmp_path, monkeypatch, store, queries):
    """Every block of docs/shares.md as it stands, in order, with a tiny store where the reader's own would be."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store, "store")
    shutil.copy(queries, "march.jsonl")
    shutil.copy(queries, "april.jsonl")
    ids = open_store(store).ids()
    Path("train.jsonl").write_text("".join(json.dumps({"id": name, "author": f"author {name[-1]}"}) + "\n" for name in ids))
    scores = torch.randn(2, len(ids), generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        one = whence.ScoreTable(scores + 0.1 * seed, ("q0", "q1"), ids, "nats", "m")
        saved(tmp_path / "tables" / f"seed{seed}", one, model=str(seed))
    blocks = re.findall(r"```(python|)\n(.*?)```", (ROOT / "docs" / "shares.md").read_text("utf-8"), re.S)
    assert [kind for kind, _ in blocks] == ["", "python", *[""] * 7]
    answer_in(Path("queries.sqlite"), open_store("store"), "2026-10", "2026-11")
    monkeypatch.setattr(periods, "time", SimpleNamespace(time=lambda: 2e9))  # these are over
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "shares.md", "exec"), {})
            continue
        for line in block.splitlines():
            if line.startswith("whence evaluate"):
                method = load_table("tables/march").method
                row = {"method": method, "lds": {"mean": 0.5, "low": 0.4, "high": 0.6}}
                Path("evaluation.json").write_text(json.dumps({"rows": [row], "num_subsets": 8, "summary": ""}))
            elif line.startswith("whence verify receipts"):
                chained(Path("receipts.jsonl"), read_signer("sealing.key"), [sealed_folder("reports/march")])
                run(*shlex.split(line)[1:-4])
            elif line.startswith("whence verify proof"):
                run(*shlex.split(line)[1:-1], committed(open_store("store")).root)
            elif line and not line.startswith("whence serve"):
                run(*shlex.split(line)[1:])
    assert json.loads(Path("reports/april/shares.json").read_text())["payout"]["currency"] == "EUR"


@pytest.mark.slow
def test_the_example(tmp_path):
    """A small version of it: the report holds, and the queries miss every module that is left out."""
    spec = importlib.util.spec_from_file_location("modules", ROOT / "examples" / "shares" / "modules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done = module.main(tmp_path, modules=3, settings=replace(module.SETTINGS, epochs=4))
    assert whence.shares.verify_shares(tmp_path / "report", seal=done.seal).faults == ()
    assert (
        set(done.rises) == {line.name for line in done.shares.lines if line.kind == "source"} and min(done.rises.values()) > 0
    )

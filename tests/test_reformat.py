"""Queries in another format: by hand, through the battery and through the bench."""

import json
from dataclasses import replace

import pytest
import torch

import whence
from whence.bench import ENTRIES, own_entry, prepare, run_setting, write_leaderboard
from whence.bench.data import dimmed
from whence.errors import BadInput, UnknownOption
from whence.evaluate import FORMATS, evaluate, reformatted, spearman
from whence.pipeline import attribute


def test_texts_keep_their_words_and_ids():
    records = ["A cat, it sat.", {"id": 7, "prompt": 'He said "no', "completion": '": done.'}]
    assert reformatted(records, "upper") == [
        {"text": "A CAT, IT SAT.", "id": "0"}, {"id": "7", "prompt": 'HE SAID "NO', "completion": '": DONE.'},
    ]  # fmt: skip
    text, pair = reformatted(records, "json")
    assert json.loads(text["text"]) == {"text": "A cat, it sat."}
    assert json.loads(pair["prompt"] + pair["completion"] + '"}') == {"text": 'He said "no": done.'}
    assert reformatted(records, "marks")[0]["text"] == "A cat; it sat -"
    for name in FORMATS:
        for word in ("cat", "sat"):
            assert word in reformatted(records, name)[0]["text"].lower()


def test_a_function_changes_copies_and_no_ids():
    def spoiled(record):
        record["inputs"][0] = 9.0
        return {"inputs": record["inputs"]}

    records = [{"id": "q", "inputs": [1.0]}]
    assert reformatted(records, spoiled) == [{"inputs": [9.0], "id": "q"}] and records[0]["inputs"] == [1.0]
    with pytest.raises(UnknownOption, match="found the format 'loud'; needed one of: upper, json, marks"):
        reformatted(records, "loud")
    with pytest.raises(BadInput, match="found record 0 without a text, for the format json"):
        reformatted(records, "json")


def test_images_lose_a_quarter_of_their_brightness():
    images = torch.arange(128.0).view(2, 64)
    assert torch.equal(dimmed(images) * 4, images * 3)


OWN = """
import torch

def dots(task, train, queries):
    rows = [torch.stack([torch.as_tensor(e.fields["inputs"]) for e in part.examples]).double() for part in (queries, train)]
    return rows[0] @ rows[1].T

def reformat(record):
    record["inputs"] = [-value for value in record["inputs"]]
    return record
"""


def test_the_bench_holds_them_against_the_truth_of_the_queries_as_they_are(tmp_path):
    pytest.importorskip("sklearn")
    setting = replace(prepare("digits-early", tmp_path), subsets=4, seeds=2)
    (tmp_path / "mine.py").write_text(OWN)
    entries = [entry for entry in ENTRIES if entry.name in ("grad-dot-exact", "bm25")]
    bench = run_setting(setting, entries=entries, removal=(), quiet=True)
    other = setting.other_format[1]
    assert other.ids == setting.queries.ids
    quiet = whence.Runtime(quiet=True)
    plain, moved = (
        attribute(setting.task, setting.train, queries, method="grad-dot-exact", runtime=quiet)
        for queries in (setting.queries, other)
    )
    by_hand = evaluate([replace(moved, method="moved")], setting.bank(quiet=True)).rows[0].lds.interval.mean
    rows = {row.method: row.lds.interval.mean for row in bench.evaluation.rows}
    name = "grad-dot-exact, queries dimmed by a quarter"
    assert rows[name] == pytest.approx(by_hand) and by_hand != rows["grad-dot-exact"] and bench.controls == (name,)
    (alike,) = bench.formats
    assert alike.spearman.mean == pytest.approx(float(spearman(plain.scores.double(), moved.scores.double()).mean()), abs=1e-5)
    assert 0.5 < alike.spearman.mean < 1
    found = run_setting(setting, entries=entries, own=[own_entry(f"{tmp_path / 'mine.py'}:dots")], quiet=True)
    assert "mine.py:dots, queries dimmed by a quarter" in found.controls and len(found.formats) == 1
    folder = tmp_path / "digits-early"
    (folder / "results.json").write_text(json.dumps(bench.to_dict()))
    assert f"{name} (control)" in write_leaderboard(tmp_path).read_text()


def test_settings_without_another_format_have_no_such_row(tmp_path):
    pytest.importorskip("sklearn")
    setting = replace(prepare("table", tmp_path), subsets=4, seeds=1)
    bench = run_setting(setting, entries=[entry for entry in ENTRIES if entry.name == "grad-dot-exact"], removal=(), quiet=True)
    assert bench.formats == [] and bench.controls == ()


def test_the_battery_compares_formats(run, tmp_path):
    torch.manual_seed(1)
    for name, count in (("train", 30), ("queries", 6)):
        rows = [{"id": f"{name}{n}", "inputs": row.tolist(), "label": n % 2} for n, row in enumerate(torch.randn(count, 6))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "made.py").write_text(
        "import torch, whence\ndef task():\n    torch.manual_seed(0)\n    return whence.Classification(torch.nn.Linear(6, 2))\n"
        + OWN
    )
    words = [
        "evaluate",
        "--battery",
        "--data",
        tmp_path / "train.jsonl",
        "--queries",
        tmp_path / "queries.jsonl",
        "--method",
        "grad-dot-exact",
    ]
    words += ["--model", f"{tmp_path / 'made.py'}:task", "-k", 5]
    content = json.loads(run(*words, "--reformat", f"{tmp_path / 'made.py'}:reformat", "--json"))
    task = whence.load.load_task(f"{tmp_path / 'made.py'}:task")[0]
    train, queries = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "queries")
    )
    negative = [{**record, "inputs": [-value for value in record["inputs"]]} for record in queries]
    plain, other = (attribute(task, train, asked, method="grad-dot-exact").scores.double() for asked in (queries, negative))
    assert content["grad-dot-exact"]["other format"]["mean"] == pytest.approx(float(spearman(plain, other).mean()))
    assert content["loss"]["other format"]["mean"] == pytest.approx(1.0)  # it knows nothing of the question
    assert "same top 5, other format" in content["grad-dot-exact"]
    assert "found record 0 without a text" in run(*words, "--reformat", "json", status=2)
    assert "found the format 'loud'" in run(*words, "--reformat", "loud", status=2)
    assert "found --reformat with tables" in run("evaluate", tmp_path, *words[1:6], "--reformat", "json", status=2)

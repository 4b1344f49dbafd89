"""Verbs about the training data, end to end: select and clusters."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from whence.commands.select_inputs import GroupOptions
from whence.data import Example
from whence.evaluate import save_table
from whence.records import ScoreTable
from whence.select.selection import load_selection


@pytest.fixture
def labelled(tmp_path):
    """Twelve texts of two sources and three classes."""
    path = tmp_path / "train.jsonl"
    texts = [f"{animal} {verb}" for animal in ("a cat", "the dog", "one bird") for verb in ("sat", "ran off", "sleeps", "is")]
    lines = [
        {"id": f"t{number}", "source": "book" if number < 8 else "web", "label": number % 3, "text": text}
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def validation(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text('{"id": "v0", "text": "a cat sat"}\n{"id": "v1", "text": "a bird sat"}\n')
    return path


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        "import torch\n"
        "worth = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))\n"
        "def retrain(keep, seed):\n    return -(worth[keep].sum(0) + 0.1 * seed)\n"
    )
    return path


def test_from_a_model_to_a_proof(run, tmp_path, model_folder, labelled, validation, script):
    words = ["select", labelled, "-o", tmp_path / "chosen", "--model", model_folder, "--validation", validation]
    words += ["--keep", "50%", "--balance", "source", "--prove", f"{script}:retrain", "--against", "loss", "--seeds", 3]
    found = json.loads(run(*words, "--json"))
    assert found["kept"] == 6 and found["groups"] == {"book": {"examples": 8, "kept": 4}, "web": {"examples": 4, "kept": 2}}
    assert set(found["proof"]["conditions"]) == {"influence", "loss", "random"} and len(found["proof"]["seeds"]) == 3
    chosen = load_selection(tmp_path / "chosen")
    assert len(chosen) == 12 and int(chosen.keep.sum()) == 6 and chosen.decisions[0].tokens == 9
    assert json.loads((tmp_path / "chosen" / "proof.json").read_text()) == found["proof"]
    records = [json.loads(line) for line in labelled.read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "chosen" / "kept.jsonl").read_text().splitlines()]
    assert kept == [record for record, keep in zip(records, chosen.keep.tolist(), strict=True) if keep]
    assert found["train_on"] == str(tmp_path / "chosen" / "kept.jsonl") and any("damping" in note for note in found["notes"])
    runs = sorted((tmp_path / "chosen" / "runs").iterdir())
    # The full run, influence, loss and random, three seeds each; again, none is done twice.
    assert len(runs) <= 12 and json.loads(run(*words, "--json")) == found
    assert sorted((tmp_path / "chosen" / "runs").iterdir()) == runs
    shown = run(*words)
    assert "damping 0.1 x mean eigenvalue" in shown and "kept.jsonl" in shown
    assert "trained on" in shown and "book" in shown and "less is better" in shown


def test_from_a_table_in_another_order(run, tmp_path, model_folder, data_file, labelled, validation):
    store, table = tmp_path / "store", tmp_path / "table"
    run("build", model_folder, data_file, "-o", store, "--method", "logra", "--rank", "8")
    run("score", store, validation, "-o", table)
    plain = json.loads(run("select", data_file, "-o", tmp_path / "a", "--table", table, "--drop", 3, "--json"))
    assert plain["dropped"] == 3 and plain["method"].startswith("logra")
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(labelled.read_text().splitlines())) + "\n")
    run("select", turned, "-o", tmp_path / "b", "--table", table, "--drop", 3)
    first, second = (load_selection(tmp_path / name) for name in "ab")
    assert first.decisions == second.decisions[::-1]
    text = run("select", validation, "-o", tmp_path / "c", "--table", table, "--drop", 1, status=2)
    assert "found 0 of 2 examples among the 12 of" in text and text.count("\n") == 1


@pytest.mark.parametrize("kind", ["scores", "self-influence", "loss", "random"])
def test_a_table_is_ranked_by_what_its_values_are(run, tmp_path, labelled, kind):
    """Values 0 to 11: the low end of what is suspicious is kept, and the high end of what helps."""
    ids, numbers = tuple(f"t{number}" for number in range(12)), torch.arange(12.0)
    queries = 8 if kind == "scores" else 1
    save_table(ScoreTable(numbers.expand(queries, -1), ids[:queries], ids, "nats", "by hand", values=kind), tmp_path / "table")
    words = ["select", labelled, "-o", tmp_path / "chosen", "--table", tmp_path / "table", "--keep", 6]
    by = "influence" if kind == "scores" else kind
    for wanted in ("influence", "self-influence", "loss"):
        if wanted != by:
            error = run(*words, "--by", wanted, status=2)
            assert f"--by {wanted} for the table of {queries} x 12 values in" in error and f"which are {kind};" in error
            assert error.count("\n") == 1 and not (tmp_path / "chosen").exists()
    if kind == "random":
        assert "--table for --by random" in run(*words, status=2)
        return
    run(*words)
    places = range(6, 12) if kind == "scores" else range(6)
    assert load_selection(tmp_path / "chosen").keep.tolist() == [number in places for number in range(12)]
    assert json.loads(run(*words, "--by", by, "--json"))["by"] == by


@pytest.mark.parametrize("by", ["self-influence", "loss", "random"])
def test_every_criterion_has_its_words(run, tmp_path, model_folder, labelled, by):
    model = [] if by == "random" else ["--model", model_folder]
    words = ["select", labelled, "-o", tmp_path / "chosen", "--by", by, *model, "--keep", 6, "--balance", "class"]
    shown = run(*words, "--quota", "equal")
    assert "kept  6" in shown
    reason = load_selection(tmp_path / "chosen").decisions[0].reason
    assert ("drawn at random" if by == "random" else by) in reason and "in '0', of which 2 are kept" in reason


def test_token_budgets_weights_and_shares(run, tmp_path, model_folder, labelled):
    words = ["select", labelled, "-o", tmp_path / "chosen", "--by", "loss", "--model", model_folder]
    found = json.loads(run(*words, "--keep", "60 tokens", "--per-token", "--json"))
    assert found["tokens_kept"] <= 60 < found["tokens"] and found["unit"].endswith("per token")
    found = json.loads(run(*words, "--keep", "0.5", "--reweight", "--json"))
    assert found["effective_examples"] == pytest.approx(6) and load_selection(tmp_path / "chosen").is_weighted


def test_long_texts_are_cut_if_asked(run, tmp_path, model_folder):
    (tmp_path / "long.jsonl").write_text('{"text": "a cat"}\n' + json.dumps({"text": "word " * 20}) + "\n")
    words = ["select", tmp_path / "long.jsonl", "-o", tmp_path / "chosen", "--by", "loss", "--model", model_folder, "--keep", 1]
    assert "needed at most 32, the model's context" in run(*words, status=2)
    assert json.loads(run(*words, "--long", "truncate", "--json"))["tokens"] == 5 + 32


@pytest.mark.parametrize(("width", "holds"), [(8, True), (4097, False)])
def test_rows_of_a_table_are_kept_as_lists_unless_they_are_long(run, tmp_path, width, holds):
    inputs = np.random.rand(6, width).astype("float32")
    np.savez(tmp_path / "data.npz", X=inputs, y=np.arange(6) % 3)
    words = ["select", tmp_path / "data.npz", "-o", tmp_path / "chosen", "--by", "random", "--keep", "2"]
    found, kept = json.loads(run(*words, "--json")), tmp_path / "chosen" / "kept.jsonl"
    assert found["kept"] == 2 and kept.exists() == holds
    if holds:
        decisions = load_selection(tmp_path / "chosen").decisions
        rows = [number for number, decision in enumerate(decisions) if decision.decision == "keep"]
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [line["inputs"] for line in lines] == inputs[rows].tolist()
    else:
        assert found["train_on"].startswith(
            "no kept.jsonl, since JSON does not hold these records, or their arrays are too large"
        )


def test_rows_of_a_table_have_no_tokens():
    rows = SimpleNamespace(examples=[Example("a", {}), Example("b", {})])
    for task, tokens in ((None, None), (SimpleNamespace(), None), (SimpleNamespace(tokenizer="words"), [1, 1])):
        assert GroupOptions().facts(task, [{}, {}], rows)["tokens"] == tokens
    rows.examples[0] = Example("a", {}, length=3)
    assert GroupOptions().facts(SimpleNamespace(), [{}, {}], rows)["tokens"] == [3, 1]


def test_records_that_are_skipped_are_not_kept(run, tmp_path, model_folder, labelled):
    lines = labelled.read_text().splitlines()
    labelled.write_text("\n".join([lines[0], '{"id": "bad", "text": 3}', *lines[1:]]) + "\n")
    words = ["select", labelled, "-o", tmp_path / "chosen", "--by", "loss", "--model", model_folder, "--skip-bad", "--keep", 12]
    run(*words)
    assert (tmp_path / "chosen" / "kept.jsonl").read_text().splitlines() == lines


def test_clusters_and_near_duplicates(run, tmp_path, model_folder, labelled, validation):
    store = tmp_path / "store"
    twice = tmp_path / "twice.jsonl"
    lines = labelled.read_text().splitlines()
    twice.write_text("\n".join([*lines, lines[0].replace('"t0"', '"copy"')]) + "\n")
    run("build", model_folder, twice, "-o", store)
    shown = run(
        "clusters", store, "-k", 3, "--queries", validation, "--html", tmp_path / "page.html", "-o", tmp_path / "c.json"
    )
    assert "tightness" in shown and "helps" in shown
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["examples"]) == 13 and found["examples"]["t0"] == found["examples"]["copy"]
    assert sum(cluster["size"] for cluster in found["clusters"]) == 13
    assert "13 training examples in 3 clusters" in (tmp_path / "page.html").read_text()
    assert json.loads(run("clusters", store, "-k", 3, "--json"))["examples"] == found["examples"]
    words = ["select", twice, "-o", tmp_path / "chosen", "--by", "loss", "--model", model_folder, "--keep", "100%"]
    chosen = json.loads(run(*words, "--duplicates", 1.0, "--store", store, "--json"))
    assert chosen["duplicates_dropped"] == 1 and chosen["kept"] == 12


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--keep", "3"], "neither --table nor --model for --by influence"),
        (["--keep", "3", "--model", "m"], "no --validation for --by influence"),
        (["--keep", "3", "--table", "t", "--validation", "v"], "--table and --validation"),
        (["--keep", "3", "--table", "t", "--method", "kfac"], "--table and --method"),
        (["--keep", "3", "--by", "random", "--table", "t"], "--table for --by random"),
        (["--keep", "3", "--by", "loss", "--model", "m", "--validation", "v"], "--validation for --by loss"),
        (["--keep", "3", "--by", "loss", "--model", "m", "--method", "kfac"], "--method for --by loss"),
        (["--keep", "3", "--by", "random", "--task", "classification"], "--task without --model"),
        (["--keep", "3", "--table", "t", "--long", "truncate"], "--long without --model"),
        (["--keep", "3", "--by", "random", "--quota", "equal"], "--quota without --balance"),
        (["--keep", "3", "--table", "t", "--per-token"], "--per-token without --model"),
        (["--keep", "3", "--table", "t", "--duplicates", "1"], "--duplicates without --store"),
        (["--keep", "3", "--table", "t", "--store", "s"], "--store without --duplicates"),
        (["--keep", "3", "--table", "t", "--prove", "a.py:b", "--command", "c"], "--prove and --command"),
        (["--keep", "3", "--table", "t", "--against", "loss"], "--against without --prove"),
        (["--keep", "3", "--table", "t", "--against", "loss", "--prove", "a.py:b"], "--against without --model"),
        (
            ["--keep", "3", "--by", "loss", "--model", "m", "--against", "loss", "--prove", "a.py:b"],
            "--against loss for --by loss",
        ),
        (["--keep", "3", "--table", "t", "--seeds", "4"], "--seeds without --prove"),
        (["--keep", "3", "--table", "t", "--prove", "a.py:b", "--workers", "0"], "--workers 0; needed 1 or more"),
        (["--keep", "3", "--table", "t", "--prove", "a.py:b", "--seeds", "0"], "--seeds 0; needed 1 or more"),
        (["--keep", "3", "--table", "t", "--reweight", "--prove", "a.py:b"], "--reweight with --prove"),
        (["--keep", "3", "--by", "random", "--prove", "a.py:b"], "--prove for --by random"),
        (["--by", "random"], "no budget"),
        (["--by", "random", "--keep", "x"], "the amount 'x'"),
        (["--by", "random", "--keep", "3", "--balance", "author"], "no 'author' in record 0"),
        (["--keep", "3", "--table", "nowhere"], "nowhere, which is no score table"),
    ],
)
def test_options_that_would_be_ignored_are_refused_in_one_line(run, tmp_path, labelled, words, text):
    error = run("select", labelled, "-o", tmp_path / "chosen", *words, status=2)
    assert text in error and error.count("\n") == 1 and not (tmp_path / "chosen").exists()
    assert "--help" not in error


def test_clusters_say_what_is_missing(run, tmp_path, model_folder, data_file):
    assert "--model without --queries" in run("clusters", tmp_path, "--model", "m", status=2)
    assert "no store at" in run("clusters", tmp_path / "nothing", status=2)
    run("build", model_folder, data_file, "-o", tmp_path / "store", "--method", "logra", "--rank", "8")
    assert "a store of logra" in run("clusters", tmp_path / "store", "-k", 2, status=2)


def test_a_training_file_in_the_folder_one_works_in(run, tmp_path, monkeypatch, script):
    """torch has modules that name files which are not there; seen from this folder they would be beside the script."""
    monkeypatch.chdir(tmp_path)
    made = json.loads(
        run("bank", "--train", "train.py:retrain", "--examples", 12, "--subsets", 2, "--seeds", 1, "-o", "bank", "--json")
    )
    assert made["subsets"] == 2

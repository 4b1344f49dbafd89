"""Stores along a recorded run from the command line: built, asked, looked at, gone on with after a kill."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import whence
from tests.conftest import record_language_run
from whence.cli import main
from whence.data import Dataset
from whence.evaluate import load_table
from whence.load import load_records, load_task
from whence.pipeline import score_along


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder, data_file):
    """A run of two stages with a language model, and the model as it was saved at its end."""
    folder = tmp_path_factory.mktemp("along")
    record_language_run(folder, model_folder, data_file, (0, 4, 0, 4, 6, 6), stages=(0, 4))
    return folder


def build_words(trained, data_file, output, *more):
    words = ["build", trained / "trained", data_file, "-o", output, "--run", trained / "run", "--method", "logra", "--rank", 4]
    return [str(word) for word in [*words, *more]]


def test_it_is_built_asked_and_looked_at(tmp_path, trained, data_file, run):
    stores = tmp_path / "stores"
    built = json.loads(run(*build_words(trained, data_file, stores)))
    assert built["stores"] == [str(stores / f"step-{step}") for step in (2, 4, 6)] and built["rows"] == [8, 8, 4]
    answer = json.loads(run("query", stores, "--text", "a cat sat", "-k", "3", "--json"))
    task, _ = load_task(str(trained / "trained"))
    query_data = task.prepare(["a cat sat"])
    table = score_along(stores, task, query_data, runtime=whence.Runtime(quiet=True))
    best = table.scores[0].topk(3)
    assert [hit["id"] for hit in answer["queries"][0]["proponents"]] == [table.train_ids[row] for row in best.indices.tolist()]
    assert [hit["score"] for hit in answer["queries"][0]["proponents"]] == pytest.approx(best.values.tolist())
    assert answer["queries"][0]["proponents"][0]["text"] and answer["num_examples"] == 10
    assert answer["notes"][0] == "sum over stores after 2, 4, 6 of a recorded run's 6 steps, weighted by the learning rate"
    for notes in (answer["notes"], json.loads(run("inspect", stores, "--json"))["notes"]):
        assert any("examples were compared with the run's by id only" in note for note in notes)
        assert any("2 examples that the run never met are in no store, the first 't10'" in note for note in notes)
    (tmp_path / "queries.jsonl").write_text(json.dumps({"id": "q", "text": "a cat sat"}) + "\n")
    scored = json.loads(run("score", stores, tmp_path / "queries.jsonl", "-o", tmp_path / "t"))
    assert scored["train"] == 10 and scored["method"].endswith("along a run") and scored["notes"] == list(table.notes)
    torch.testing.assert_close(load_table(tmp_path / "t").scores.double(), table.scores)
    run("score", stores, tmp_path / "queries.jsonl", "-o", tmp_path / "t")
    shown = run("inspect", stores)
    assert "a recorded run of 6 steps" in shown, shown
    assert run("verify", stores) == f"{stores}: 3 stores along a run, 20 rows, all as sealed\n"
    shard = next((stores / "step-4" / "shards").glob("*.jsonl"))
    shard.write_bytes(shard.read_bytes().replace(b"cat", b"cow", 1))
    assert "its checksum is not the sealed one" in run("verify", stores, status=1)
    forecast = [
        "forecast",
        trained / "trained",
        data_file,
        "--run",
        trained / "run",
        "--method",
        "logra",
        "--rank",
        4,
        "--json",
    ]
    told = json.loads(run(*forecast))
    assert [(store["step"], store["rows"]) for store in told["stores"]] == [(2, 8), (4, 8), (6, 4)]
    assert [store["step"] for store in json.loads(run(*forecast, "--checkpoints", 1))["stores"]] == [2, 6]


def test_scores_are_those_of_stores_at_the_run_s_weights(tmp_path, trained, data_file, run):
    """By hand: a store of each checkpoint's weights, times what the stage met of an example and the share of the learning rates."""
    run(*build_words(trained, data_file, tmp_path / "stores", "--checkpoints", 1))
    (tmp_path / "q.txt").write_text("a cat sat\n")
    run("score", tmp_path / "stores", tmp_path / "q.txt", "-o", tmp_path / "t")
    table, wanted = load_table(tmp_path / "t"), dict.fromkeys([f"t{n}" for n in range(10)], 0.0)
    records, config = load_records(str(data_file)), whence.BuildConfig(method="logra", rank=4)
    for step, weight, met in ((2, 4 / 6, range(8)), (6, 2 / 6, range(6, 10))):
        task, _ = load_task(str(trained / "trained"))
        kept = whence.runs.open_run(trained / "run").tensors(step)
        with torch.no_grad():
            for name, value in task.model.named_parameters():
                value.copy_(kept[f"model.{name}"])
        every = task.prepare(records)
        store = whence.build(task, Dataset([every.examples[n] for n in met]), tmp_path / str(step), config=config)
        part = whence.score_table(store, task, load_records(str(tmp_path / "q.txt")))
        for name, score in zip(part.train_ids, part.scores[0].tolist(), strict=True):
            wanted[name] += weight * score
    assert table.scores[0].tolist() == pytest.approx([wanted[name] for name in table.train_ids], rel=1e-5, abs=1e-9)


def test_a_killed_build_goes_on(tmp_path, trained, data_file, run):
    run(*build_words(trained, data_file, tmp_path / "whole"))
    words = build_words(trained, data_file, tmp_path / "killed")
    code = f"""
import os, signal
from whence.pipeline.stored import build
finish, times = build.finish_store, []
def finish_or_die(*arguments):
    times.append(1)
    if len(times) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(*arguments)
build.finish_store = finish_or_die
from whence.cli import main
main({words!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -signal.SIGKILL
    first = tmp_path / "killed" / "step-2"
    assert (first / "manifest.json").exists() and not (tmp_path / "killed" / "step-4" / "manifest.json").exists()
    for words_of in (
        ["query", tmp_path / "killed", "--text", "a cat"],
        ["inspect", tmp_path / "killed"],
        ["verify", tmp_path / "killed"],
    ):
        assert "found no finished store step-4 in" in run(*words_of, status=2)
    before = {path: path.stat().st_mtime_ns for path in (first / "shards").iterdir()}
    run(*words)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_what_cannot_be_is_refused_in_a_line(tmp_path, trained, data_file, other_model_folder, run):
    words, stores = build_words(trained, data_file, tmp_path / "stores"), tmp_path / "stores"
    run(*words)
    other = [word if word != str(trained / "trained") else str(other_model_folder) for word in words]
    for more, says in (
        (other, "is not what the run in"),
        ([*words, "--append"], "found --append with --run; needed one of them"),
        ([*words, "--spool", str(tmp_path / "spool")], "found --spool with --run"),
        ([*words, "--checkpoints", "0"], "found --checkpoints 0; needed 1 or more"),
        ([*words, "--checkpoints", "1"], "found stores with checkpoints=3 in"),
        ([word for word in words if word not in ("--run", str(trained / "run"))], "found stores along a recorded run in"),
        ([*words[:-6], "--checkpoints", "1"], "found --checkpoints without --run; needed the run"),
        ([*words[:5], "--run", str(data_file.parent)], "found no run.json in"),
        (["query", stores, "--text", "a cat", "--tokens"], "found --tokens for"),
        (["query", stores, "--text", "a cat", "--rerank", "exact"], "found --rerank for"),
        (["query", stores / "step-2", "--text", "a cat"], f"do this: ask {stores}, or pass --model with such a model"),
        (["query", stores / "step-2", "--text", "a cat", "--run", trained / "run"], "found --run for the store"),
        (["score", stores, data_file, "-o", tmp_path / "t", "--ensemble", tmp_path / "e"], "found --ensemble for"),
        (["delete", stores, "--ids", "t1"], "found stores along a recorded run at"),
        (["forecast", trained / "trained", data_file, "--checkpoints", "2"], "found --checkpoints without --run"),
    ):  # fmt: skip
        error = run(*more, status=2)
        assert says in error and "; do this: " in error, error
    shutil.copytree(trained / "run", tmp_path / "run")
    moved = [word if word != str(trained / "run") else str(tmp_path / "run") for word in words]
    next((tmp_path / "run").glob("checkpoint-*2.safetensors")).unlink()
    moved[moved.index("-o") + 1] = str(tmp_path / "more")
    assert "do this: restore the folder from a copy, or record again" in run(*moved, status=2)
    asked = ["query", stores, "--text", "a cat", "--json", "--run", tmp_path / "run"]
    assert "do this: restore the folder from a copy, or record again" in run(*asked, status=2)
    record = json.loads((stores / "along.json").read_text())
    (stores / "along.json").write_text(json.dumps(record | {"steps": 7}))
    assert "along.json missing or unreadable" in run("query", stores, "--text", "a cat", status=2)


def test_a_run_without_checkpoints_in_between_has_one_store(tmp_path, model_folder, data_file, run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    task = whence.CausalLM(model, tokenizer)
    train, optimizer = task.prepare(load_records(str(data_file))), torch.optim.SGD(model.parameters(), lr=0.05)
    with whence.Recorder(tmp_path / "run", model, optimizer, every=1000) as recorder:
        for _ in range(2):
            recorder.batch(train.ids)
            task.loss(model, task.collate(train.examples)).mean().backward()
            optimizer.step()
    for kind in (model, tokenizer):
        kind.save_pretrained(tmp_path / "trained")
    built = json.loads(run(*build_words(tmp_path, data_file, tmp_path / "stores")))
    assert [name.rpartition("/")[2] for name in built["stores"]] == ["step-2"] and built["rows"] == [12]
    assert main(["query", str(tmp_path / "stores"), "--text", "a cat"]) == 0

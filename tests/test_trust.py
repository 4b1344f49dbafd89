"""What a store records of its model and data is loaded where it is only data; where it is code, only if a person said so in this command."""

import hashlib
import json
import os
import py_compile
import shutil
from pathlib import Path

import pytest

from whence.cli import main
from whence.functions import function_at

CODE = """
import os, pathlib
pathlib.Path(__file__).with_name("ran").touch()
from tests.test_store import make_records, make_task

def make(): return make_task()
def data(): return make_records(6)
"""
MODEL, DATA = "downloaded/evil.py:make", "downloaded/evil.py:data"


def record(folder, **changes):
    """Change what a store says of its task, and seal it again as whoever made it could."""
    content = json.loads((folder / "blueprint.json").read_text())
    content["task"] |= changes
    (folder / "blueprint.json").write_text(json.dumps(content, indent=1, sort_keys=True))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["blueprint"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def honest(tmp_path_factory, model_folder, data_file):
    """A store of a language model and data in a file, built from the command line."""
    folder = tmp_path_factory.mktemp("honest") / "store"
    assert main(["build", str(model_folder), str(data_file), "-o", str(folder), "--rows-per-shard", "5"]) == 0
    return folder


@pytest.fixture
def downloaded(tmp_path, honest, data_file, monkeypatch):
    """A store that came with a Python file and names it; the current folder is the one that it was downloaded into."""
    folder = shutil.copytree(honest, tmp_path / "downloaded")
    (folder / "evil.py").write_text(CODE)
    record(folder, model=MODEL, data=DATA)
    shutil.copy(data_file, tmp_path / "queries.jsonl")
    monkeypatch.chdir(tmp_path)
    yield folder
    assert not (folder / "__pycache__").exists()


def ran(folder):
    return (folder / "ran").exists()


VERBS = {
    "query": ["query", "downloaded", "--text", "a cat"],
    "score": ["score", "downloaded", "queries.jsonl", "-o", "table"],
    "clusters": ["clusters", "downloaded", "-k", "2", "--queries", "queries.jsonl"],
    "study": ["study", "downloaded", "--set", "a=queries.jsonl", "-o", "studied"],
    "shares": ["shares", "--store", "downloaded", "--queries", "queries.jsonl", "-o", "report"],
    "why": ["why", "downloaded", "--prompt", "a cat", "--completion", " sat"],
    "serve": ["serve", "downloaded"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [MODEL, "downloaded/EVIL.PY:make", "{absolute}", "owner/model", "downloaded", "./downloaded"])
def test_no_verb_loads_what_a_store_names(run, downloaded, verb, name):
    record(downloaded, model=name.format(absolute=f"{downloaded / 'evil.py'}:make"))
    err = run(*VERBS[verb], status=2)
    assert err.splitlines()[-1].startswith("whence: found a store in downloaded that records the model ")
    assert "or --trust if you trust whoever made this store" in err and not ran(downloaded)
    assert not any((downloaded.parent / made).exists() for made in ("table", "studied", "report"))


def test_recorded_data_is_not_loaded_either(run, downloaded, model_folder):
    for name in (DATA, "owner/dataset", "downloaded"):
        record(downloaded, data=name)
        for words in (["query", "downloaded", "--text", "a", "--rerank", "exact"], ["why", "downloaded", "--prompt", "a cat"]):
            err = run(*words, "--model", model_folder, status=2)
            assert f"records the data {name!r}" in err and "pass --train" in err and not ran(downloaded)


def test_code_runs_when_a_person_names_it_or_trusts_the_store(run, downloaded):
    for given in (["--trust"], ["--model", MODEL]):
        # The code is of another model than the store's rows: loaded, and then refused.
        err = run(*VERBS["query"], *given, status=2)
        assert "two models" in err and ran(downloaded)
        os.remove(downloaded / "ran")


def test_what_runs_is_what_the_file_says(tmp_path):
    """Compiled code beside it, as new as the file says, is not what a person reads."""
    path = tmp_path / "mine.py"
    path.write_text("def answer():\n    return 1\n")
    cached = Path(py_compile.compile(str(path), doraise=True))
    stat = path.stat()
    path.write_text("def answer():\n    return 2\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cached.exists() and function_at(f"{path}:answer")() == 2


def test_inspect_says_what_would_run_and_runs_nothing(run, downloaded, honest):
    told = run("inspect", "downloaded")
    assert f"with --trust  the model '{MODEL}', Python code that would be run" in told
    assert f"with --trust  the data '{DATA}', Python code that would be run" in told
    assert len(json.loads(run("inspect", "downloaded", "--json"))["needs_trust"]) == 2
    assert not ran(downloaded)
    assert json.loads(run("inspect", honest, "--json"))["needs_trust"] == []


def test_a_recorded_folder_of_plain_weights_is_loaded(run, honest):
    run("query", honest, "--text", "a cat", "--json")
    run("query", honest, "--text", "a cat", "--rerank", "exact", "--json")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m: edit(m / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}), "config.json asks for code of its own"),
        (lambda m: edit(m / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}), "asks for code of its own"),
        (lambda m: edit(m / "config.json", text_config={"auto_map": {"AutoModel": "evil.M"}}), "asks for code of its own"),
        (lambda m: edit(m / "config.json", _attn_implementation="owner/kernel"), "asks for code from the hub"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "not safetensors and would be unpickled"),
        (lambda m: (m / "config.json").write_text("[" * 100_000), "config.json cannot be read .nested deeper than"),
        (lambda m: (m / "config.json").write_text('{"a": 1, "a": 2}'), "config.json cannot be read .the field 'a' twice"),
    ],
)  # fmt: skip
def test_a_recorded_folder_that_asks_for_more_is_not_loaded(run, downloaded, model_folder, damage, says):
    model = shutil.copytree(model_folder, downloaded.parent / "model")
    (model / "evil.py").write_text(CODE)
    damage(model)
    record(downloaded, model=str(model))
    err = run(*VERBS["query"], status=2)
    assert says.split(" .")[0] in err and "--trust" in err and not ran(model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "an adapter of 'owner/base', which would be looked up"),
        ({"base_model_name_or_path": "downloaded"}, "an adapter of 'downloaded', which would be looked up"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "asks for more than LoRA (megatron_config)"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "asks for more than LoRA (MULTITASK_PROMPT_TUNING)"),
    ],
)
def test_a_recorded_adapter_that_asks_for_more_is_not_loaded(run, downloaded, changes, says):
    adapter = downloaded.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    content = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", **changes}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    record(downloaded, model=str(adapter))
    assert says in run(*VERBS["query"], status=2)


def test_code_that_comes_with_a_model_is_not_run_for_a_named_one_either(run, downloaded, model_folder, monkeypatch):
    model = shutil.copytree(model_folder, downloaded.parent / "model")
    (model / "evil.py").write_text(CODE)
    edit(model / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="mine")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    assert "which cannot be loaded" in run(*VERBS["query"], "--model", model, status=2) and not ran(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3}, {"model": ["a"]}, {"data": {"a": 1}}, {"kind": [], "task": []}, {"split": None}, {"dtype": "int9"}, {"options": []},
        {"options": {"model": "x"}}, {"options": {"long": "maybe"}}, {"options": {"max_length": True}}, {"options": {"max_length": -1}},
        {"options": {"track": "a"}}, {"options": {"track": [1]}}, {"options": {"functional": 1}},
    ],
)  # fmt: skip
def test_a_task_of_another_form_is_refused(run, downloaded, model_folder, changes):
    record(downloaded, model=str(model_folder), **({"data": DATA} | changes if "model" not in changes else {}))
    record(downloaded, **changes)
    assert "a build " in run(*VERBS["query"], status=2)
    assert "a build " in run(*VERBS["query"], "--model", model_folder, status=2)


def test_a_recorded_folder_of_half_the_disk_is_not_walked(run, downloaded, model_folder, monkeypatch):
    monkeypatch.setattr("whence.commands.recorded._FILES", 10)
    monkeypatch.setattr("whence.commands.recorded._FILES_A_ROW", 0)
    many = downloaded.parent / "many"
    for number in range(20):
        (many / f"{number}").mkdir(parents=True)
    record(downloaded, data=str(many))
    err = run("query", "downloaded", "--text", "a", "--rerank", "exact", "--model", model_folder, status=2)
    assert "a folder of more than 10 files for 12 rows" in err


def test_trust_without_anything_to_trust(run, downloaded, model_folder):
    assert "--trust without --queries" in run("clusters", "downloaded", "--trust", status=2)
    assert "--trust without a store" in run("why", "--prompt", "a", "--model", model_folder, "--trust", status=2)
    assert "--trust for training data" in run(
        "study", model_folder, "queries.jsonl", "--set", "a=queries.jsonl", "-o", "s", "--trust", status=2
    )

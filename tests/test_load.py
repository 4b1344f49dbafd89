"""Models and data by name: every form that is read, and what is said of those that cannot be."""

import gzip
import json
import random
import shutil

import numpy as np
import pytest
import torch

from whence.errors import BadInput, UnknownOption
from whence.load import load_records, load_task
from whence.records import Recipe
from whence.tasks import CausalLM, Classification

RECORDS = [{"text": "one, two", "label": 3}, {"text": "drei\nvier é", "label": -1}]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


# Files


def test_jsonl(tmp_path):
    lines = "\n\n".join(json.dumps(record) for record in RECORDS)
    assert load_records(write(tmp_path / "a.jsonl", lines)) == RECORDS
    assert load_records(write(tmp_path / "b.jsonl", '"just a text"\n["x", 1]\n')) == ["just a text", ["x", 1]]


def test_json(tmp_path):
    assert load_records(write(tmp_path / "a.json", json.dumps(RECORDS))) == RECORDS


def test_csv_and_tsv(tmp_path):
    assert load_records(write(tmp_path / "a.csv", 'text,label\n"one, two",3\n"drei\nvier é",-1\n')) == RECORDS
    assert load_records(write(tmp_path / "a.tsv", "text\tlabel\none, two\t3\n")) == RECORDS[:1]
    assert load_records(write(tmp_path / "b.csv", "text,label,year\na,x,1990\n")) == [
        {"text": "a", "label": "x", "year": "1990"}
    ]


def test_csv_holds_whole_documents(tmp_path):
    long = "word " * 50_000  # above the csv module's own limit of 131,072 characters
    assert load_records(write(tmp_path / "a.csv", f"text,id\n{long},a\n")) == [{"text": long, "id": "a"}]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path, name):
    """Spreadsheets write one; it would become part of the first field's name."""
    content = {"a.csv": "text\nhi\n", "a.jsonl": '{"text": "hi"}\n', "a.json": '[{"text": "hi"}]', "a.txt": "hi\n"}[name]
    assert load_records(write(tmp_path / name, "\ufeff" + content))[0]["text"] == "hi"


def test_paragraphs_of_a_text(tmp_path):
    path = write(tmp_path / "book.txt", "\nFirst line\nsecond line.\n\n\n  \nNext é.\r\n\r\nLast\n")
    assert load_records(path) == [
        {"text": "First line\nsecond line.", "id": "book.txt#0", "source": "book.txt"},
        {"text": "Next é.", "id": "book.txt#1", "source": "book.txt"},
        {"text": "Last", "id": "book.txt#2", "source": "book.txt"},
    ]


def test_folder_of_texts(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "two.md", "# Zwei\n\nmore")
    write(tmp_path / "one.txt", "eins\n")
    write(tmp_path / "picture.png", "no text")
    assert load_records(str(tmp_path)) == [
        {"text": "# Zwei\n\nmore", "id": "b/two.md", "source": "b/two.md"},
        {"text": "eins\n", "id": "one.txt", "source": "one.txt"},
    ]


def test_function(tmp_path):
    path = write(tmp_path / "mine.py", "import helper\ndef records():\n    return helper.RECORDS\n")
    write(tmp_path / "helper.py", "RECORDS = ['a', 'b']\n")
    assert load_records(f"{path}:records") == ["a", "b"]


def test_what_explains_a_folder_is_none_of_its_examples(tmp_path, datasets):
    (tmp_path / "cat").mkdir()
    for name in ("README.md", "LICENSE.txt", "cat/0.png"):
        write(tmp_path / name, "words")
    assert [record["id"] for record in load_records(str(tmp_path))] == ["cat/0.png"]
    (tmp_path / "cat" / "0.png").unlink()
    assert len(load_records(str(tmp_path))) == 2
    write(tmp_path / "train.jsonl", '{"text": "a"}\n')
    assert list(load_records(str(tmp_path))) == [{"text": "a"}]


def test_targets_of_a_table_are_numbers(tmp_path):
    path = write(tmp_path / "a.csv", "x,target\n1,0.5\n2,-3\n3,1e-3\n")
    assert [record["target"] for record in load_records(path)] == [0.5, -3, 0.001]
    with pytest.raises(BadInput, match=r"cannot be read \(two columns with the name 'text'\)"):
        load_records(write(tmp_path / "b.csv", "text,text\na,b\n"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damage_of_arrays_goes_unnoticed(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, X=np.arange(12.0).reshape(6, 2), y=np.arange(6))
    whole = path.read_bytes()
    wanted = str(load_records(str(path)))
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        for content in (whole[: generator.randrange(len(whole))], damaged):
            path.write_bytes(content)
            try:
                found = str(load_records(str(path)))
                assert content is damaged and found == wanted  # a bit that nothing reads
            except BadInput as error:
                assert "a.npz, which cannot be read" in str(error)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(BadInput, match="cannot be read .one array, not a file of several"):
        load_records(str(path))


# Hugging Face datasets


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return found


def test_saved_dataset(tmp_path, datasets):
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "d"))
    assert list(load_records(str(tmp_path / "d"))) == RECORDS


def test_saved_splits(tmp_path, datasets):
    parts = {"train": datasets.Dataset.from_list(RECORDS), "test": datasets.Dataset.from_list(RECORDS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert list(load_records(str(tmp_path / "d"))) == RECORDS
    assert list(load_records(str(tmp_path / "d"), split="test")) == RECORDS[:1]
    with pytest.raises(
        BadInput, match=r"which cannot be loaded \(.*dev.*\); needed a file, .*; do this: check the path and the split"
    ):
        load_records(str(tmp_path / "d"), split="dev")


def test_folder_of_parquet(tmp_path, datasets):
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_list(RECORDS).to_parquet(str(tmp_path / "d" / "train-00000.parquet"))
    assert list(load_records(str(tmp_path / "d"))) == RECORDS


def test_a_hub_name_out_of_reach(datasets):
    with pytest.raises(
        BadInput, match=r"found data 'nobody/nothing', which cannot be loaded \(.+\); needed .* a hub name within reach"
    ):
        load_records("nobody/nothing")


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a.jsonl, which cannot be read \(line 2: .*\); needed valid .jsonl"),
        ("a.jsonl", '{"text": "\\ud83d"}\n', r"a.jsonl, which cannot be read \(line 1: half of a character"),
        ("a.json", '{"text": "a"}', r"a.json, which cannot be read \(not a list of records\); needed valid .json"),
        ("a.json", "[1, 2", r"a.json, which cannot be read \(Expecting"),
        ("a.csv", "text,label\na,1\nb\n", r"a.csv, which cannot be read \(line 3: not as many fields as the header, 2\)"),
        ("a.csv", "text,label\na,1,2\n", r"a.csv, which cannot be read \(line 2: not as many fields as the header, 2\)"),
        ("a.csv", 'text\n"a', r"a.csv, which cannot be read \(unexpected end of data\)"),
        (
            "a.xlsx",
            "",
            r"found data file .*a.xlsx; needed one of: .jsonl, .json, .csv, .tsv, .txt, .npz, .jsonl.gz, .parquet, .arrow; do this: conv",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, text):
    with pytest.raises(BadInput, match=text):
        load_records(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "folder/a.txt"])
def test_files_of_another_encoding(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("text\n\xe9\n".encode("latin-1"))
    with pytest.raises(BadInput, match=rf"{name}, which cannot be read \('utf-8' codec can't decode byte 0xe9"):
        load_records(str(path.parent if "/" in name else path))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nowhere.jsonl", "nowhere.csv"])
def test_no_data_there(name):
    with pytest.raises(BadInput, match=f"found no data at {name}; needed a file or folder; do this: check the path"):
        load_records(name)


# Models


def test_language_model(model_folder):
    task, origin = load_task(str(model_folder), long="split", track=["*mlp*"])
    assert isinstance(task, CausalLM) and task.recipe is None and task.max_length == 32 and task.long == "split"
    assert origin == {"model": str(model_folder), "task": "causal_lm", "options": {"long": "split", "track": ["*mlp*"]}}
    again, _ = load_task(origin["model"], kind=origin["task"], **origin["options"])
    assert (again.weights, again.preprocessing, again.tracked) == (task.weights, task.preprocessing, task.tracked)


def test_relative_paths_are_kept_as_absolute_ones(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    _, origin = load_task(model_folder.name)
    assert origin["model"] == str(model_folder)


def test_classifier(tmp_path, model_folder):
    from transformers import BertConfig, BertForSequenceClassification

    from tests.conftest import save_tokenizer

    config = BertConfig(
        num_hidden_layers=1, hidden_size=8, intermediate_size=12, num_attention_heads=2, vocab_size=257, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert")
    task, origin = load_task(str(tmp_path / "bert"), kind="classification")
    assert isinstance(task, Classification) and origin["task"] == "classification"
    batch = task.collate(task.prepare([{"text": "good", "label": 1}, {"text": "bad one", "label": 0}]).examples)
    assert task.loss(task.model, batch).shape == (2,)
    with pytest.raises(
        BadInput, match=r"found no values for 1 weights of .*'score.weight'.*trained for the task classification"
    ):
        load_task(str(model_folder), kind="classification")


def test_recipe_is_read(tmp_path, model_folder):
    folder = _copy(model_folder, tmp_path)
    (folder / "recipe.json").write_text('{"optimizer": "sgd", "learning_rate_sum": 30, "weight_decay": 0.01}')
    assert load_task(str(folder))[0].recipe == Recipe(optimizer="sgd", learning_rate_sum=30, weight_decay=0.01)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be a mapping, not list"),
        ('{"optimizer": "sgd"}', "missing 1 required positional argument: 'learning_rate_sum'"),
        ('{"optimizer": "sgd", "learning_rate_sum": 1, "lr": 2}', "unexpected keyword argument 'lr'"),
        ('{"optimizer": "sgd", "learning_rate_sum": "1e-3"}', "learning_rate_sum is '1e-3', not a number"),
        ('{"optimizer": "sgd", "learning_rate_sum": 1, "momentum": null}', "momentum is None, not a number"),
    ],
)
def test_broken_recipe_is_refused(tmp_path, model_folder, content, why):
    folder = _copy(model_folder, tmp_path)
    (folder / "recipe.json").write_text(content)
    with pytest.raises(
        BadInput, match=rf"recipe.json, which is no recipe \(.*{why}.*\); needed the fields optimizer, learning_rate_sum"
    ):
        load_task(str(folder))


def test_unknown_kind(model_folder):
    with pytest.raises(
        UnknownOption,
        match="found task 'poetry'; needed one of: causal_lm, classification, masked_lm, regression, .*; do this: pick one",
    ):
        load_task(str(model_folder), kind="poetry")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_no_model_there(name):
    with pytest.raises(BadInput, match=f"found no model folder at {name}; needed a folder written by save_pretrained"):
        load_task(name)


def test_a_model_on_the_hub_out_of_reach(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        BadInput, match=r"found model 'nobody/nothing', which cannot be loaded \(.+\); needed .* a hub name within reach"
    ):
        load_task("nobody/nothing")


def test_task_from_a_function(tmp_path):
    path = write(
        tmp_path / "mine.py",
        "import torch, whence\n"
        "def task():\n    return whence.Regression(torch.nn.Linear(2, 1))\n"
        "def model():\n    return torch.nn.Linear(2, 1)\n"
        "LIMIT = 3\n",
    )
    task, origin = load_task(f"{path}:task")
    assert task.kind == "regression" and origin == {"model": f"{path}:task", "task": "regression", "options": {}}
    assert isinstance(task.model, torch.nn.Linear)
    with pytest.raises(BadInput, match=r"mine.py:model returning a Linear; needed a whence task, such as"):
        load_task(f"{path}:model")
    for name in ("nope", "LIMIT"):
        with pytest.raises(
            BadInput, match=rf"found no function '{name}' in .*mine.py; needed one of: task, model; do this: correct it"
        ):
            load_task(f"{path}:{name}")
    with pytest.raises(BadInput, match=r"found no Python file .*other.py; needed file.py:function"):
        load_task(f"{tmp_path}/other.py:task")


def _copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_compressed_lines_and_parquet_are_read_as_they_are(tmp_path, run, model_folder, data_file):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = load_records(str(data_file))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(data_file.read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "train.parquet")
    for name in ("train.jsonl.gz", "train.parquet"):
        assert list(load_records(str(tmp_path / name))) == records
    words = ["attribute", model_folder, tmp_path / "train.parquet", tmp_path / "train.jsonl.gz", "--method", "grad-dot-exact"]
    assert json.loads(run(*words, "-o", tmp_path / "table"))["train"] == 12
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(data_file.read_bytes())[:-20])
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    for name in ("cut.jsonl.gz", "none.parquet"):
        with pytest.raises(BadInput, match=rf"{name}, which cannot be read .*; needed valid"):
            load_records(str(tmp_path / name))
    with pytest.raises(BadInput, match=r"no data at missing.jsonl.gz; needed a file or folder"):
        load_records("missing.jsonl.gz")

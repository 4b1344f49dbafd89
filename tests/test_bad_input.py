"""What people get wrong, through the command line: one line that says found, needed, do this; status 2; nothing half-written."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from whence.cli import main


@pytest.fixture
def refused(capsys):
    """Run a command that has to fail, and hold what it says against a pattern."""

    def run(*arguments, says, only=True):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        # What was under way is said, too.
        lines = [line for line in err.splitlines() if not re.match(r"\d of \d: ", line)]
        assert out == "" and "Traceback" not in err
        assert lines and re.match(r"whence: found .*; do this: \S", lines[-1]), err
        assert re.search(says, lines[-1]), err
        assert len(lines) == 1 or not only, err

    return run


@pytest.fixture
def output(tmp_path):
    """A place for a store that is not there yet, and has to stay unbuilt."""
    folder = tmp_path / "out" / "store"
    yield folder
    assert not (folder / "manifest.json").exists() and not list(folder.rglob("*.tmp"))


@pytest.fixture
def model(tmp_path, model_folder):
    """A copy of the model, to be damaged."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder, data_file):
    """A finished store; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    options = ["--method", "grad-dot", "--rank", "4", "--rows-per-shard", "5"]
    assert main(["build", str(model_folder), str(data_file), "-o", str(folder), *options]) == 0
    return folder


def test_options_of_a_task_that_have_no_use(refused, output, data_file, model):
    says = "found --long split for --task classification; needed a language model for it"
    for verb in (
        ["build", model, data_file, "-o", output],
        ["curvature", model, data_file, "-o", output],
        ["forecast", model, data_file],
    ):
        refused(*verb, "--task", "classification", "--long", "split", says=says)
    refused("build", model, data_file, "-o", output, "--spool", output, "--split", "test", says="found --split with --spool")


def write(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


# Models


def test_missing_model_folder(refused, output, data_file, tmp_path):
    refused(
        "build",
        tmp_path / "nope",
        data_file,
        "-o",
        output,
        says="found no model folder at .*nope; needed a folder written by save_pretrained",
    )
    assert not output.exists()


def test_folder_without_config(refused, output, data_file, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("build", tmp_path / "empty", data_file, "-o", output, says="found no config.json in .*empty; .*check the path")
    assert not output.exists()


def test_a_trainers_folder_names_its_last_checkpoint(refused, output, data_file, model, store, tmp_path):
    trained = tmp_path / "trained"
    for step in (900, 1000, 200):
        shutil.copytree(model, trained / f"checkpoint-{step}")
    (trained / "checkpoint-2000").mkdir()  # empty: the trainer was stopped
    says = "needed a folder written by save_pretrained; do this: name .*trained/checkpoint-1000, the last checkpoint there"
    for name in (trained, trained / "final"):
        for verb in (
            ["build", name, data_file, "-o", output],
            ["attribute", name, data_file, data_file, "-o", output],
            ["query", store, "--text", "a cat", "--model", name],
        ):
            refused(*verb, says=says)
    assert not output.exists()


def test_corrupt_config(refused, output, data_file, model):
    (model / "config.json").write_text('{"model_type": "gpt2", ')
    refused(
        "build",
        model,
        data_file,
        "-o",
        output,
        says="which cannot be loaded .*config.json.* not a valid JSON file.*all files were copied",
    )
    assert not output.exists()


def test_config_of_an_unknown_kind(refused, output, data_file, model):
    (model / "config.json").write_text('{"model_type": "perceptron9"}')
    refused("build", model, data_file, "-o", output, says="which cannot be loaded .*perceptron9")


@pytest.mark.parametrize("damage", ["truncated", "noise", "missing"])
def test_damaged_weights(refused, output, data_file, model, damage):
    path = model / "model.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if damage == "truncated" else b"\xff" * 3000)
    refused(
        "build",
        model,
        data_file,
        "-o",
        output,
        says=r"found model '.*model', which cannot be loaded \(.+\); needed a folder written by save_pretrained with",
    )
    assert not output.exists()


def test_missing_weights(refused, output, data_file, model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.c_fc.weight"))
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(
        "build", model, data_file, "-o", output,
        says="found no values for 1 weights of '.*model', such as 'transformer.h.0.mlp.c_fc.weight'; needed a complete checkpoint",
    )  # fmt: skip
    assert not output.exists()


def test_weights_of_another_shape(refused, output, data_file, model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.c_fc.weight"))
    save_file({**tensors, name: tensors[name][:, :5].contiguous()}, path, metadata={"format": "pt"})
    refused("build", model, data_file, "-o", output, says="which cannot be loaded")
    assert not output.exists()


def test_nan_weights(refused, output, data_file, model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.c_fc.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    refused(
        "build",
        model,
        data_file,
        "-o",
        output,
        says="found NaN or infinite values in the weight 'transformer.h.0.mlp.c_fc.weight'; needed finite",
    )
    assert not output.exists()


def test_model_without_tokenizer(refused, output, data_file, model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    refused(
        "build",
        model,
        data_file,
        "-o",
        output,
        says="found no tokenizer with '.*model'; needed tokenizer.json.*tokenizer.save_pretrained",
    )
    assert not output.exists()


def test_broken_recipe(refused, output, data_file, model):
    (model / "recipe.json").write_text('{"optimizer": "sgd"}')
    refused(
        "build",
        model,
        data_file,
        "-o",
        output,
        says="recipe.json, which is no recipe .*learning_rate_sum.*; needed the fields optimizer, ",
    )


# Data


@pytest.mark.parametrize(
    ("name", "records", "says"),
    [
        ("empty.jsonl", [], "found an empty dataset; needed at least one example"),
        ("bad.jsonl", [{"text": "fine"}, '{"text": "cut'], r"bad.jsonl, which cannot be read \(line 2: "),
        ("fields.jsonl", [{"text": "fine"}, {"body": "a", "year": 1}], r"record 1 with the fields \['body', 'year'\]; needed 'text', or"),
        ("both.jsonl", [{"text": "a", "prompt": "b", "completion": "c"}], "record 0 with both 'text' and 'completion'; needed one"),
        ("null.jsonl", [{"text": None}], "record 0 with a 'text' of type NoneType; needed a string"),
        ("part.jsonl", [{"prompt": "a", "completion": 3}], "record 0 with a 'completion' of type int; needed a string"),
        ("ids.jsonl", [{"input_ids": ["a", "b"]}], "record 0 with input_ids or labels that are no list of integers"),
        ("high.jsonl", [{"input_ids": [1, 10**6]}], "record 0 with the token id 1000000; needed as many labels as input_ids"),
        ("short.jsonl", [{"input_ids": [1, 2, 3], "labels": [1]}], "record 0 with 1 labels for 3 input_ids"),
        ("kind.jsonl", ["[1, 2]"], "record 0 of type list; needed a string or a mapping with 'text'"),
        ("short.jsonl", [{"text": "fine", "id": "a"}, {"text": "", "id": "b"}], r"example 'b' with 0 token\(s\); needed at least 2"),
        ("half.jsonl", [{"text": "fine", "id": "a"}, {"prompt": "what", "id": "b"}], r"record 1 with the fields \['id', 'prompt'\]"),
        ("twice.jsonl", [{"text": "one", "id": "a"}, {"text": "two", "id": "a"}], "two examples with the id 'a'"),
        ("data.xlsx", [], "found data file .*data.xlsx; needed one of: .jsonl, .json, .csv, .tsv, .txt"),
        ("nowhere/data.jsonl", None, "found no data at .*nowhere/data.jsonl; needed a file or folder"),
    ],
)  # fmt: skip
def test_bad_data(refused, output, model_folder, tmp_path, name, records, says):
    path = tmp_path / name
    if records is not None:
        write(path, *records)
    refused("build", model_folder, path, "-o", output, says=says)
    refused("forecast", model_folder, path, says=says)
    assert not output.exists()


def test_data_is_looked_at_before_the_model(refused, output, tmp_path):
    """A wrong path should not wait for a model that takes minutes to load."""
    refused("build", tmp_path / "no-model", tmp_path / "no-data.jsonl", "-o", output, says="found no data at")


def test_text_longer_than_the_context(refused, output, model_folder, tmp_path, capsys):
    path = write(tmp_path / "long.jsonl", {"text": "short", "id": "a"}, {"text": "x" * 70, "id": "b"})
    refused(
        "build", model_folder, path, "-o", output,
        says="found example 'b' of 70 tokens; needed at most 32, the model's context; .*on the command line --long split",
    )  # fmt: skip
    assert not output.exists()
    for choice, rows in (("split", 4), ("truncate", 2)):
        folder = tmp_path / choice
        arguments = ["build", model_folder, path, "-o", folder, "--method", "grad-dot", "--rank", "2", "--long", choice]
        assert main([str(argument) for argument in arguments]) == 0
        assert json.loads(capsys.readouterr().out)["rows"] == rows
    refused("build", model_folder, path, "-o", output, "--long", "fold", says='Invalid value "fold" for --long')


def test_recipe_and_functions(refused, output, tmp_path, data_file):
    path = tmp_path / "mine.py"
    path.write_text("def task():\n    return 3\n")
    refused("build", f"{path}:task", data_file, "-o", output, says="mine.py:task returning a int; needed a whence task")
    refused(
        "build", f"{path}:other", data_file, "-o", output, says="found no function 'other' in .*mine.py; needed one of: task"
    )
    refused(
        "build", f"{path}:task", data_file, "-o", output, "--max-length", "8", "--functional",
        says="found --max-length, --functional for .*mine.py:task; needed these set in the function",
    )  # fmt: skip


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "magic"], "found unknown method 'magic'; needed one of: aligned, factgrass, grad-cos, grad-dot, grass, "),
        (["--dtype", "float8"], r'found a command that cannot be read \(Invalid value "float8" for --dtype'),
        (["--projection", "none"], 'Invalid value "none" for --projection'),
        (["--rank", "many"], 'Invalid value for --rank: unable to convert "many" into int'),
        (["--rank", "-3"], "found rank=-3; needed 0 or more; do this: correct rank"),
        (["--rank", "9999999999"], "found rank=9,999,999,999; needed 2,147,483,647 or less; do this: lower rank"),
        (
            ["--method", "lorif", "--side-divisor", "9999999999"],
            "found side_divisor=9,999,999,999; needed 2,147,483,647 or less; do this: lower side_divisor",
        ),
        (["--seed", "-1"], "found seed=-1; needed 0 or more; do this: correct seed"),
        (["--factor-rank", "2", "--method", "logra"], "found factor_rank=2 for the method logra; needed a method that uses factor_rank"),
        (["--curvature-rank", "9", "--method", "grad-dot"], "found curvature_rank=9 for the method grad-dot"),
        (["--projection", "gaussian", "--method", "logra-pca"], "found projection=gaussian for logra-pca; needed rademacher or"),
        (["--projection", "sparse", "--method", "lorif"], "found projection=sparse for lorif; needed rademacher or gaussian for layers"),
        (["--projection", "gaussian", "--method", "factgrass"], "found projection=gaussian for factgrass; needed rademacher or"),
        (["--frobnicate"], "found the unknown option --frobnicate; needed an option of whence build; do this: see `whence build --help-all`"),
        (["--track", "nothing.*"], r"found the pattern 'nothing.\*', which matches no parameter; needed a pattern for names such as"),
        (["--ignore", "*"], "found no parameter to attribute among"),
    ],
)  # fmt: skip
def test_bad_options(refused, output, model_folder, data_file, options, says):
    refused("build", model_folder, data_file, "-o", output, *options, says=says)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bild"], r"found the unknown verb 'bild'; needed one of: attribute, .*, why; do this: did you mean `whence build`\?"),
        (["help"], "found help, which is no verb but an option; needed --help; do this: see `whence --help`"),
        (["help", "build"], "found help, which is no verb but an option; needed --help; do this: see `whence build --help`"),
        (["frobnicate"], "found the unknown verb 'frobnicate'; .*; do this: see `whence --help`"),
        (["Why is it blue?"], "found the question 'Why is it blue\\?' where a verb is needed; .* do this: pass it as --text: whence query"),
        (["build", "m"], "found whence build without DATA; needed whence build MODEL DATA --output OUTPUT; do this: add it; see `whence b"),
        (["build", "m", "d.jsonl"], "found whence build without --output OUTPUT; needed whence build MODEL DATA --output OUTPUT"),
        (["build", "m", "d", "--ouptut", "o"], "unknown option --ouptut; needed an .*; do this: did you mean --output"),
        (["select", "d", "-o", "o", "--validate=v"], "found the unknown option --validate; .*; do this: did you mean --validation"),
        (["build", "m", "d", "-o", "o", "--rank"], "found --rank without a value; needed whence build MODEL DATA --output OUTPUT"),
        (["verify", "a", "b"], "found 'b', which whence verify does not read; .*pass it as --text, or leave it out"),
        (["delete", "s", "math.fabs#0"], "found 'math.fabs#0', which whence delete does not read; .* do this: pass it as --ids, or"),
        (["query", "s", "Why is it blue?"], "found 'Why is it blue.*', which whence query does not .* do this: pass it as --text"),
        (["why", "s", "Why is it blue?"], "found 'Why is it blue.*', which whence why does not .* do this: pass it as --prompt"),
        (["query", "Why is it blue?"], "found the question 'Why .*' where a store's folder is read; .*: name the store first, and pass"),
        (["query", "Why is it blue?", "--text", "a"], "found no store at Why is .*; do this: name the store first, and pass a question"),
        (["query", "s", "--file", "Why is it blue?"], "found the text 'Why is it blue.*' where a file is read; .* a question as --text"),
        (["attribute", "m", "{data}", "Why is it blue?", "-o", "o"], "found the text 'Why .*' where a file is read; .*: pass a question as"),
        (["score", "s", "Why is it blue?", "-o", "o"], "found the text 'Why .*' where a file is read; needed a file or folder of records"),
    ],
)  # fmt: skip
def test_mistyped_commands(refused, data_file, words, says):
    refused(*(word.format(data=data_file) for word in words), says=says)


# Where and how much at a time

WORDS = ("{data}", "-o", "{output}")
ON_STORE = ("--queries", "{data}")
COMPUTES = [
    ["build", "{model}", *WORDS], ["forecast", "{model}", "{data}"], ["curvature", "{model}", *WORDS],
    ["attribute", "{model}", "{data}", *WORDS], ["smoothness", "{model}", "{data}", "--run", "{output}"],
    ["proxy", "{model}", "{data}", *WORDS, "--target-name", "t"],
    ["guide", "{model}", *WORDS, "--harmful", "{data}", "--safe", "{more}"],
    ["select", *WORDS, "--model", "{model}", "--validation", "{data}", "--keep", "3"],
    ["study", "{model}", *WORDS, "--set", "a={data}"], ["study", "{store}", "-o", "{output}", "--set", "a={data}"],
    ["why", "--model", "{model}", "--train", "{data}", "--prompt", "a"], ["why", "{aligned}", "--prompt", "a"],
    ["query", "{store}", "--text", "a cat"], ["score", "{store}", *WORDS], ["refit", "{store}"],
    ["clusters", "{store}", "--queries", "{data}"], ["serve", "{store}"],
    ["shares", "--store", "{store}", "--queries", "{data}", "-o", "{output}"],
]  # fmt: skip


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, model_folder, data_file):
    folder = tmp_path_factory.mktemp("stores") / "aligned"
    assert main(["build", str(model_folder), str(data_file), "-o", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("words", COMPUTES, ids=lambda words: " ".join(words[:2]))
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    refused, output, model_folder, data_file, store, aligned, tmp_path, words
):
    more = shutil.copy(data_file, tmp_path / "more.jsonl")
    places = {"model": model_folder, "data": data_file, "output": output, "store": store, "aligned": aligned, "more": more}
    for device in ("cuda:99", "meta", "gpu"):
        refused(
            *(word.format(**places) for word in words), "--device", device, only=words[0] != "serve",
            says=f"found the device '{device}', which cannot be used here .*; needed one that this machine has: cpu.*; do this: correct it",
        )  # fmt: skip


@pytest.mark.parametrize(
    "words", [words for words in COMPUTES if words[0] in ("build", "attribute", "curvature", "query", "select")]
)
def test_impossible_batches(refused, output, model_folder, data_file, store, words):
    places = {"model": model_folder, "data": data_file, "output": output, "store": store}
    words = [word.format(**places) for word in words]
    refused(*words, "--batch-size", "-1", says="found batch_size=-1; needed (1|0) or more; do this")
    refused(
        *words,
        "--batch-size",
        "4",
        "--batch-positions",
        "9",
        says="found batch_size=4 and batch_positions=9; needed one of them",
    )


def early(tmp_path):
    """A model that says so if it is loaded."""
    path = tmp_path / "late.py"
    path.write_text("def task():\n    raise SystemExit('loaded')\n")
    return f"{path}:task"


EARLY = [
    ("attribute {model} {data} {data} -o {output}", ("--method magic", "--iterations 3", "--fit-on 13", "--fit-on 0", "--samples 0",
     "--relative-damping -1", "--relative-damping 1 --absolute-damping 1", "--memory-gib 0", "--seed -1", "--query-rank 0")),
    ("guide {model} {data} -o {output} --harmful {data} --safe {more}", ("--method magic", "--fit-on 13", "--quantile 2", "--samples 0")),
    ("proxy {model} {data} {data} -o {output} --target-name t", ("--method magic", "--fit-on 13", "--largest-side 0", "--probe -1")),
    ("study {model} {data} -o {output} --set a={data}", ("--method magic", "--iterations 3", "--fit-on 13", "-k 7", "-k 0")),
    ("study {store} -o {output} --set a={data} --model {model}", ("-k 7", "--relative-damping 1", "--damping-rule mean")),
    ("why --model {model} --train {data} --prompt a", ("--method pcg", "--fit-on 13", "-k 0", "--token 0", "--temperature -1")),
    ("why {aligned} --prompt a --model {model}", ("-k 0", "--shortlist 3", "--relative-damping 1", "--memory-gib 1", "--token 0")),
    ("select {data} -o {output} --model {model} --validation {data}", ("--keep 13", "--drop 12", "--keep 2x", "--keep 3 --method magic",
     "--keep 3 --by loss --batch-size 2", "--keep 3 --duplicates 2 --store {aligned}", "--keep 3 --seed -1")),
    ("curvature {model} {data} -o {output}", ("--fit-on 13", "--samples 0", "--seed -1", "--largest-side 0")),
    ("forecast {model} {data} --queries {data}", ("--exact magic", "--exact ekfac --query-rank 0", "--exact ekfac --memory-gib 0")),
    ("query {store} --text a --model {model}", ("-k 0", "--relative-damping 1", "--damping-rule mean", "--rerank exact", "--rerank no")),
    ("query {aligned} --text a --model {model}", ("--rerank exact --shortlist 3", "--relative-damping 1", "--shortlist 30")),
    ("score {store} {data} -o {output} --model {model}", ("--relative-damping 1", "--relative-damping -1")),
    ("clusters {aligned} --queries {data} --model {model}", ("-k 13", "-k 0", "--shared 0", "--central -1")),
]  # fmt: skip


@pytest.mark.parametrize(("command", "wrong"), EARLY, ids=lambda value: value.split(" -")[0] if isinstance(value, str) else "")
def test_settings_are_refused_before_the_model_is_loaded(refused, output, data_file, store, aligned, tmp_path, command, wrong):
    more = shutil.copy(data_file, tmp_path / "more.jsonl")
    places = {"model": early(tmp_path), "data": data_file, "output": output, "store": store, "aligned": aligned, "more": more}
    for words in wrong:
        refused(*f"{command} {words}".format(**places).split(), says="found .+; needed .+; do this: ")
    # As long as nothing is wrong it is loaded.
    if not command.startswith("select"):
        with pytest.raises(SystemExit, match="loaded"):
            main(f"{command}{' --exact ekfac' * command.startswith('forecast')}".format(**places).split())


def test_more_is_not_kept_than_there_is(refused, output, data_file, tmp_path):
    words = ["select", data_file, "-o", output, "--model", early(tmp_path), "--validation", data_file]
    refused(
        *words,
        "--keep",
        "13",
        says="found --keep 13 of 12 training examples; needed 1 to 12 of them; do this: correct it, or give a share",
    )
    refused(*words, "--drop", "12", says="found --drop 12 of 12 training examples; needed 1 to 11 of them")
    refused("attribute", early(tmp_path), data_file, data_file, "-o", output, "--fit-on", "13",
            says="found --fit-on 13; needed 1 to 12 training examples; do this: correct it, or leave it out")  # fmt: skip


# Disk


def test_full_disk(refused, output, model_folder, data_file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
        refused(
            "build", model_folder, data_file, "-o", output, only=False,
            says=r"found 1 KiB free at .*store; needed \d+ KiB for 12 rows; do this: free some space, choose another folder, or ",
        )  # fmt: skip
    assert {path.name for path in output.iterdir()} <= {".lock"}


@pytest.mark.parametrize("below", ["", "store", "a/b/store"])
def test_output_that_cannot_be_a_folder(refused, model_folder, data_file, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("in the way")
    refused(
        "build", model_folder, data_file, "-o", file / below,
        says=r"found .*file.*, which cannot be written \(.*file is a file\); needed a folder that can be created",
    )  # fmt: skip
    assert file.read_text() == "in the way"


# Stores


def test_store_of_another_model(refused, store, other_model_folder, data_file):
    refused(
        "build", other_model_folder, data_file, "-o", store, "--method", "grad-dot", "--rank", "4", "--rows-per-shard", "5",
        says=r"found a store of other weights in .*; needed weights \w{8}, not \w{8}; do this: build into another folder",
    )  # fmt: skip
    refused(
        "query", store, "--text", "a cat", "--model", other_model_folder,
        says=r"found a store of weights \w{8} and a task with weights \w{8}; needed the same on both sides",
    )  # fmt: skip


def test_store_of_other_options(refused, store, model_folder, data_file):
    refused(
        "build",
        model_folder,
        data_file,
        "-o",
        store,
        "--method",
        "grad-dot",
        only=False,
        says="built with rank=4; needed the same rank",
    )


def test_no_store(refused, tmp_path):
    for command in (["query", tmp_path / "nope", "--text", "a"], ["verify", tmp_path], ["inspect", tmp_path / "nope"]):
        refused(*command, says="found no store at .*; needed a folder made by `whence build`; do this: check the path")


def test_unfinished_store(refused, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    for command in (["query", copy, "--text", "a"], ["verify", copy], ["inspect", copy]):
        refused(
            *command,
            says=r"found an unfinished store at .*copy \(3 shards so far\); needed a finished build; .*goes on where it stopped",
        )


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damaged_store(refused, store, tmp_path, damage):
    copy = shutil.copytree(store, tmp_path / "copy")
    path = copy / "shards/00001.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "delete":
        path.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if damage == "flip" else b""))
    says = {
        "flip": r"\(its checksum is not",
        "cut": r"\([\d,]+ of [\d,]+ bytes are there",
        "delete": r"\(it is missing",
    }
    refused(
        "query",
        copy,
        "--text",
        "a cat",
        says=f"found a damaged file .*00001.safetensors {says[damage]}.*delete that shard's files",
    )


def test_store_whose_model_has_moved(refused, model, data_file, tmp_path, capsys):
    folder = tmp_path / "store"
    assert main(["build", str(model), str(data_file), "-o", str(folder), "--method", "grad-dot", "--rank", "2"]) == 0
    model.rename(tmp_path / "moved")
    says = "found no model at .*model, where it was when .*store was built; needed the same model; do this: pass --model with the place"
    refused("query", folder, "--text", "a cat", says=says)
    assert main(["query", str(folder), "--text", "a cat", "--model", str(tmp_path / "moved"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 12


# Queries


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "found no query; needed --text, --prompt with --completion, or --file; do this: add one"),
        (["--prompt", "a"], "found only one of --prompt and --completion; needed both; do this: add the other, or use --text"),
        (["--completion", "a"], "found only one of --prompt and --completion"),
        (["--text", ""], r"found example '0' with 0 token\(s\)"),
        (["--text", "x" * 40], "found example '0' of 40 tokens; needed at most 32"),
        (["--text", "a cat", "-k", "0"], "found -k 0; needed 1 or more; do this: correct it"),
        (["--text", "a cat", "-k", "few"], "unable to convert"),
        (["--text", "a cat", "--relative-damping", "0.1"], "found damping for a store of grad-dot; needed a method with curvature"),
        (["--text", "a cat", "--model", "./nowhere"], "found no model folder at ./nowhere"),
        (["--file", "nowhere.jsonl"], "found no data at nowhere.jsonl"),
        (["--prompt", "a", "--completion", ""], "found example '0' with"),
    ],
)  # fmt: skip
def test_bad_queries(refused, store, options, says):
    refused("query", store, *options, says=says)


def test_bad_damping(refused, model_folder, data_file, tmp_path, capsys):
    folder = tmp_path / "logra"
    assert main(["build", str(model_folder), str(data_file), "-o", str(folder), "--method", "logra", "--rank", "4"]) == 0
    query = ["query", folder, "--text", "a cat"]
    says = r"found Damping\(relative=0.1, absolute=2.0\); needed at most one of them, and positive; do this: leave them out"
    refused(*query, "--relative-damping", "0.1", "--absolute-damping", "2", says=says)
    refused(*query, "--relative-damping", "nan", says="found relative=nan; needed a finite number")
    for value in ("0", "-1"):
        refused(*query, "--relative-damping", value, says=rf"found Damping\(relative={float(value)}, absolute=None")
    path = folder / "curvature.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    refused(
        *query,
        says=r"curvature.safetensors \(its checksum is not the sealed one\).*delete it and run the same `whence build` again",
    )
    path.unlink()
    refused(*query, says=r"curvature.safetensors \(it is missing\)")


def test_a_page_that_cannot_be_written(refused, store, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        "query", store, "--text", "a cat", "--html", tmp_path / "file" / "page.html", says="page.html, which cannot be written"
    )

"""The command line from end to end, on a tiny model."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.settings import QUIET
from whence.cli import _USES, _VERBS, app, main
from whence.commands.help_pages import FEW, FIRST
from whence.methods import EXACT_METHODS, METHODS
from whence.score import RELATIVE
from whence.settings import BuildConfig

SOURCE = Path(__file__).parent.parent / "src"
VERBS = (
    "demo",
    "build",
    "query",
    "serve",
    "verify",
    "inspect",
    "forecast",
    "score",
    "attribute",
    "study",
    "proxy",
    "smoothness",
    "bank",
    "evaluate",
    "bench",
    "methods",
)


OPTIONS = ("--method", "lorif", "--rank", "8", "--dtype", "float32")


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder, data_file):
    folder = tmp_path_factory.mktemp("stores") / "store"
    arguments = ["build", model_folder, data_file, "-o", folder, *OPTIONS, "--rows-per-shard", "5"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


# Verbs


def test_build_says_what_it_made_and_goes_on(run, store, model_folder, data_file, capsys):
    arguments = ["build", model_folder, data_file, "-o", store, *OPTIONS, "--rows-per-shard", "5"]
    found = json.loads(run(*arguments))
    assert found.keys() == {"store", "rows", "bytes_per_row", "disk_bytes"}
    assert found["store"] == str(store) and found["rows"] == 12 and found["bytes_per_row"] > 0
    assert main([str(argument) for argument in arguments]) == 0
    assert f"{store} is complete: nothing to do" in capsys.readouterr().err


def test_the_default_method_in_so_many_bytes(run, model_folder, data_file, tmp_path):
    """Twelve documents have twelve directions at most, so 2 kB hold all of them in full."""
    arguments = ("build", model_folder, data_file, "-o", tmp_path / "s", "--bytes-per-example", "2k")
    told = json.loads(run("forecast", *arguments[1:3], *arguments[5:], "--json"))
    found = json.loads(run(*arguments))
    assert found["rows"] == 12 and 10 * 2 <= found["bytes_per_row"] <= 12 * 2
    code = (tmp_path / "s" / "codes.safetensors").stat().st_size
    assert 0.8 * code <= told["curvature_bytes"] <= 1.2 * code and told["learning_memory_bytes"] > 0
    assert not (tmp_path / "s" / "factors").exists()
    hits = json.loads(run("query", tmp_path / "s", "--text", "a cat sat", "-k", "2", "--tokens", "--json"))
    assert (
        hits["method"] == "aligned"
        and hits["unit"] == RELATIVE
        and hits["measurement_unit"] == "nats of the query's log-probability"
    )
    assert any("sizes are relative" in note for note in hits["notes"])
    best = hits["queries"][0]["proponents"][0]
    assert best["text"] == "a cat sat" and abs(sum(part["score"] for part in best["tokens"]) / best["score"] - 1) < 0.05
    error = run(*arguments[:5], "--bytes-per-example", "2x", status=2)
    assert "found bytes_per_example='2x'; needed a number of bytes, such as 512, 2k, 64m or 2g" in error


@pytest.mark.parametrize("method", ["aligned", "lorif", "grad-dot"])
def test_sizes_are_those_of_the_files(method, model_folder, data_file, tmp_path, capsys):
    folder = tmp_path / "s"
    assert main([str(word) for word in ("build", model_folder, data_file, "-o", folder, "--method", method)]) == 0
    out, err = capsys.readouterr()
    told, size = json.loads(out)["disk_bytes"], sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    rows, texts = (sum(path.stat().st_size for path in folder.glob(f"shards/*.{end}")) for end in ("safetensors", "jsonl"))
    assert told == {"rows": rows, "texts": texts, "shared": size - rows - texts, "total": size}
    text = next(line.removeprefix("disk: ") for line in err.splitlines() if line.startswith("disk: "))
    assert text.startswith(f"{size / 1024:,.0f} KiB: {rows / 1024:,.0f} KiB of rows (")
    assert main(["inspect", str(folder)]) == 0 and f"disk  {text}\n" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0 and json.loads(capsys.readouterr().out)["disk_bytes"] == told
    assert main([str(word) for word in ("forecast", model_folder, data_file, "--method", method, "--json")]) == 0
    expected = json.loads(capsys.readouterr().out)["disk_bytes"]
    # What is small and the same for every store (headers, the blueprint, the probe of the model) is not counted beforehand.
    assert (
        expected["texts"] == texts
        and 0 <= size - expected["total"] <= 40 << 10
        and sum(expected.values()) == 2 * expected["total"]
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """So many texts that time is told before they are gone through."""
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    path.write_text("".join(json.dumps({"id": f"m{number}", "text": f"text number {number}"}) + "\n" for number in range(50)))
    return path


ALIGNED = [
    "1 of 5: reading the model and the data", "2 of 5: measuring the curvature", "3 of 5: learning the code",
    "4 of 5: compressing the examples", "5 of 5: holding scores against exact ones",
]  # fmt: skip


def stages_of(capsys, *words, status=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    return [line for line in capsys.readouterr().err.splitlines() if re.match(r"\d of \d: |\d stages|resuming", line)]


def test_a_build_says_its_stages_and_goes_on_where_it_stopped(model_folder, many, tmp_path, capsys):
    build = ("build", model_folder, many, "-o", tmp_path / "s", "--rows-per-shard", 20)

    def stop_at(name):
        stopped = pytest.MonkeyPatch()
        module, _, function = name.rpartition(".")
        stopped.setattr(f"{module}.{function}", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        return stopped

    stored = "whence.pipeline.stored"
    stopped = stop_at(f"{stored}.learn_code.whiten")
    lines = stages_of(capsys, *build, status=130)
    stopped.undo()
    assert lines[0] == ALIGNED[0] and re.fullmatch(r"5 stages, about \d+ s", lines[1]) and lines[2:] == ALIGNED[1:2]
    stopped = stop_at(f"{stored}.build.write_rows")
    lines = stages_of(capsys, *build, status=130)
    stopped.undo()
    assert re.fullmatch(r"resuming at stage 3 of 5, about \d+ s", lines[1]) and lines[2:] == ALIGNED[2:3]
    stopped = stop_at(f"{stored}.build.measure_fidelity")
    lines = stages_of(capsys, *build, status=130)
    stopped.undo()
    assert re.fullmatch(r"resuming at stage 4 of 5, about \d+ s", lines[1]) and lines[2:] == ALIGNED[3:4]
    lines = stages_of(capsys, *build)
    assert re.fullmatch(r"resuming at stage 5 of 5, about \d+ s", lines[1]) and lines[2:] == ALIGNED[4:]
    assert stages_of(capsys, *build) == ALIGNED[:1]  # complete


def test_a_build_does_not_say_that_it_resumes_what_it_refuses(model_folder, many, tmp_path, capsys, monkeypatch):
    build = ("build", model_folder, many, "-o", tmp_path / "s", "--rows-per-shard", 20)
    logra = (*build, "--method", "logra", "--rank", 4)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("whence.pipeline.stored.build.write_rows", stop)
        stages_of(capsys, *logra, status=130)
    assert len(stages_of(capsys, *build, status=2)) == 1  # reading the model and the data; nothing is learned
    assert not any("resuming" in line for line in stages_of(capsys, *logra[:-1], 5, status=2))
    first, said, *_ = stages_of(capsys, *logra)
    assert first.startswith("1 of") and said.startswith(("resuming at stage 2", "3 stages", "2 stages"))


def test_other_long_commands_say_their_stages(model_folder, many, data_file, store, tmp_path, capsys):
    table = ("attribute", model_folder, many, data_file, "-o", tmp_path / "t", "--factors", tmp_path / "f")
    lines = stages_of(capsys, *table)
    assert re.fullmatch(r"4 stages, about \d+ s", lines.pop(1)) and lines == [
        "1 of 4: reading the model and the data", "2 of 4: measuring the curvature",
        "3 of 4: asking the questions", "4 of 4: scoring the training examples",
    ]  # fmt: skip
    again = stages_of(capsys, *table)
    assert [line[:6] for line in again if "stages" not in line] == ["1 of 4", "3 of 4", "4 of 4"]  # the fit is there
    lines = stages_of(capsys, "curvature", model_folder, many, "-o", tmp_path / "c")
    assert re.fullmatch(r"4 stages, about \d+ s", lines.pop(1)) and lines == [
        "1 of 4: reading the model and the data", "2 of 4: adding up second moments",
        "3 of 4: finding eigenvectors", "4 of 4: measuring eigenvalues",
    ]  # fmt: skip
    assert stages_of(capsys, "query", store, "--text", "a cat sat", "--tokens") == [
        "1 of 4: reading the store and its model", "2 of 4: asking the questions",
        "3 of 4: scanning the store", "4 of 4: scoring tokens",
    ]  # fmt: skip
    assert stages_of(capsys, "score", store, data_file, "-o", tmp_path / "scores")[-1] == "3 of 3: scanning the store"
    lines = stages_of(capsys, "build", model_folder, data_file, "-o", tmp_path / "logra", "--method", "logra", "--rank", 4)
    assert lines == [
        "1 of 3: reading the model and the data", "3 stages", "2 of 3: compressing the examples",
        "3 of 3: measuring the curvature of the rows",
    ]  # fmt: skip


def test_the_first_line_comes_before_torch_is_imported(model_folder, data_file, tmp_path):
    for words in (
        ["build", model_folder, data_file, "-o", tmp_path / "s", "--method", "grad-dot"],
        ["attribute", model_folder, data_file, data_file, "-o", tmp_path / "t", "--method", "grad-dot-exact"],
        ["query", tmp_path / "s", "--text", "a cat"],
    ):
        done = python("-X", "importtime", "-m", "whence", *map(str, words))
        lines = done.stderr.splitlines()
        assert done.returncode == 0, lines[-3:]
        first = next(number for number, line in enumerate(lines) if re.match(r"1 of \d: reading", line))
        imported = {line.rsplit("|", 1)[-1].strip() for line in lines[:first] if line.startswith("import time:")}
        assert "whence.plans" in imported and not imported & {"torch", "transformers", "numpy"}


def test_attribute_is_named_where_a_store_does_not_pay(model_folder, many, data_file, tmp_path, capsys):
    def note(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "`whence attribute` is cheaper" in line]

    assert re.fullmatch(
        r"note: for a few questions about so few documents `whence attribute` is cheaper: about \d+ s, and nothing is kept; what the rows "
        r"of this store share takes \d+ KiB",
        *note("build", model_folder, many, "-o", tmp_path / "s"),
    )
    assert len(note("build", model_folder, data_file, "-o", tmp_path / "few")) == 1  # too few to tell the time
    assert not note("build", model_folder, many, "-o", tmp_path / "raw", "--method", "grad-dot")


def test_batches_of_so_many_examples_on_a_device_by_name(run, model_folder, data_file, tmp_path, monkeypatch):
    longest = max(len(json.loads(line)["text"].encode()) for line in data_file.read_text().splitlines())
    made = {}
    for name, batch in (("size", ("--batch-size", 3)), ("positions", ("--batch-positions", 3 * longest)), ("free", ())):
        run("build", model_folder, data_file, "-o", tmp_path / name, *OPTIONS, *batch, "--device", "cpu")
        made[name] = json.loads(run("inspect", tmp_path / name, "--json"))["batch_positions"]
    assert made["size"] == made["positions"] == 3 * longest != made["free"]
    shards = [(tmp_path / name / "shards" / "00000.safetensors").read_bytes() for name in ("size", "positions")]
    assert shards[0] == shards[1]

    seen = []
    import whence.data

    batches = whence.data.batches

    def watched(lengths, **options):
        seen.append(options["max_positions"])
        return batches(lengths, **options)

    for module in ("score.query", "score.exact", "curvature.kfac"):
        monkeypatch.setattr(f"whence.{module}.batches", watched)
    on = ("--device", "cpu", "--batch-size", 2)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"text": "a cat sat"}\n')
    two, question = 2 * longest, 2 * len("a cat sat")
    for words, positions in (
        (("attribute", model_folder, data_file, data_file, "-o", tmp_path / "t"), two),
        (("curvature", model_folder, data_file, "-o", tmp_path / "c"), two),
        (("select", data_file, "--model", model_folder, "--validation", data_file, "--keep", 3, "-o", tmp_path / "k"), two),
        (("query", tmp_path / "free", "--text", "a cat sat", "--json"), question),
        (("score", tmp_path / "free", asked, "-o", tmp_path / "scores"), question),
    ):
        seen.clear()
        run(*words, *on)
        assert positions in seen and max(seen) <= max(positions, made["free"] if words[0] in ("query", "score") else 0), (
            words,
            seen,
        )


def test_build_appends(run, store, model_folder, data_file, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "a new cat"}\n')
    arguments = ["-o", tmp_path / "s", "--method", "grad-dot", "--rank", "4"]
    run("build", model_folder, data_file, *arguments)
    assert json.loads(run("build", model_folder, more, *arguments, "--append"))["rows"] == 13


def test_query_as_json(run, store):
    found = json.loads(run("query", store, "--text", "a cat sat", "--text", "the dog", "-k", "3", "--json"))
    assert found.keys() == {"unit", "measurement_unit", "method", "stage", "num_examples", "notes", "queries"}
    assert found["method"] == "lorif" and found["num_examples"] == 12 and "log-probability" in found["unit"]
    assert [query["query"] for query in found["queries"]] == ["a cat sat", "the dog"]
    for query in found["queries"]:
        assert query.keys() == {"query", "question", "measurement", "proponents", "opponents"} and query["measurement"] < 0
        up, down = ([hit["score"] for hit in query[side]] for side in ("proponents", "opponents"))
        assert up == sorted(up, reverse=True) and down == sorted(down) and len(up) == len(down) == 3 and up[0] > down[0]
        for hit in query["proponents"] + query["opponents"]:
            assert hit.keys() == {"id", "row", "score", "source", "text", "span"}
            assert hit["source"] == "book" and hit["id"] == f"t{hit['row']}"
    assert found["queries"][0]["proponents"][0]["text"] == "a cat sat"


def test_query_as_table_and_page(run, store, tmp_path):
    page = tmp_path / "pages" / "answer.html"
    page.parent.mkdir()
    out = run(
        "query",
        store,
        "--prompt",
        "a cat",
        "--completion",
        " sat",
        "-k",
        "2",
        "--html",
        page,
        "--tokens",
        "--relative-damping",
        "1",
    )
    assert "a cat sat" in out and "proponents" in out and "damping 1 x mean eigenvalue, as asked" in out
    assert "\x1b" not in out  # colours are for terminals
    html = page.read_text()
    assert html.lstrip().lower().startswith("<!doctype html>") and "a cat sat" in html and "12 training examples" in html


def test_query_with_tokens_as_json(run, store):
    found = json.loads(run("query", store, "--text", "a cat sat", "-k", "2", "--json", "--tokens"))
    for hit in found["queries"][0]["proponents"]:
        assert [part["span"] for part in hit["tokens"]][-1][1] == len(hit["text"])


def test_queries_from_a_file_and_a_model_from_elsewhere(run, store, model_folder, tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "one"}\n{"prompt": "two", "completion": "!"}\n')
    found = json.loads(run("query", store, "--file", path, "--model", model_folder, "-k", "99", "--json"))
    assert [query["query"] for query in found["queries"]] == ["one", "two!"]
    assert all(len(query["proponents"]) + len(query["opponents"]) == 12 for query in found["queries"])


def test_verify(run, store, tmp_path):
    assert run("verify", store) == f"{store}: 12 rows in 3 shards, all as sealed\n"
    copy = shutil.copytree(store, tmp_path / "copy")
    first, second = copy / "shards/00000.safetensors", copy / "shards/00002.jsonl"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    assert run("verify", copy, status=1).splitlines() == [
        f"{path}: its checksum is not the sealed one" for path in (first, second)
    ]


def test_inspect(run, store, model_folder):
    found = json.loads(run("inspect", store, "--json"))
    blueprint = json.loads((store / "blueprint.json").read_text())
    assert {key: found[key] for key in blueprint} == blueprint
    assert (found["rows"], found["shards"], found["method"], found["rank"], found["format"]) == (12, 3, "lorif", 8, 1)
    out = run("inspect", store)
    assert re.search(r"rows  12\n", out) and str(model_folder) in out and re.search(r"factor_rank  2\n", out)


def test_forecast(run, store, model_folder, data_file):
    found = run("forecast", model_folder, data_file, *OPTIONS)
    assert "tracking" in found and "memory:" in found
    per_row = json.loads(run("inspect", store, "--json"))["bytes_per_row"]
    assert f"of rows ({per_row:,} bytes each)" in found and "12 rows in shards" in found and "time: about" in found
    numbers = json.loads(run("forecast", model_folder, data_file, *OPTIONS, "--json"))
    assert numbers["row_bytes"] == per_row and numbers["rows"] == 12 and numbers["gradient_seconds"] > 0
    assert abs(numbers["curvature_bytes"] - (store / "curvature.safetensors").stat().st_size) < 16384
    assert numbers["learning_seconds"] == 0


def test_forecast_of_a_code_counts_what_comes_before_the_rows(run, model_folder, data_file):
    assert re.search(
        r"time: about [\d,]+ s for the curvature and the code, then [\d,]+ s for the rows",
        run("forecast", model_folder, data_file),
    )
    numbers = json.loads(run("forecast", model_folder, data_file, "--bytes-per-example", "64", "--json"))
    assert (
        min(numbers["learning_seconds"], numbers["gradient_seconds"], numbers["fidelity_seconds"])
        >= 0
        < numbers["learning_seconds"]
    )


def test_forecast_of_an_exact_method(run, model_folder, data_file, tmp_path):
    arguments = ("forecast", model_folder, data_file, "--exact", "ekfac", "--queries", data_file, "--factors", tmp_path / "f")
    found = run(*arguments)
    assert "tracking" in found and "memory: about" in found and "12 of 12 rows at a time" in found and "; disk: " in found
    assert re.search(r"time: about [\d,]+ s by \d+ examples and a smaller side's eigenvectors \(fit [\d,]+ s, queries", found)
    seconds = json.loads(run(*arguments, "--json"))["seconds"]
    assert (
        seconds["total"] == seconds["fit"] + seconds["queries"] + seconds["scan"] + seconds["training"]
        and not seconds["may_stop"]
    )
    assert "time: at most, about" in run(*(word if word != "ekfac" else "pcg" for word in arguments))
    numbers = json.loads(run(*arguments, "--memory-gib", "0.01", "--json"))
    assert numbers["available_memory_bytes"] == int(0.01 * 2**30) and numbers["passes_to_fit"] >= 2
    assert not (tmp_path / "f").exists()
    for extra, says in (
        (["--queries", data_file], "found --queries for a build; needed --exact METHOD with it; do this: add it"),
        (["--exact", "ekfac"], "without --queries; needed queries, and no options of a build; do this: add --queries FILE"),
        (
            ["--exact", "ekfac", "--queries", data_file, "--rank", "8"],
            "with options of a build; needed queries, and no options of a build; do this: leave the options",
        ),
    ):
        assert says in run("forecast", model_folder, data_file, *extra, status=2)


def test_verify_json(run, store):
    assert json.loads(run("verify", store, "--json")) == {"rows": 12, "deleted": 0, "shards": 3, "faults": []}


def test_methods(run):
    out = run("methods")
    for name in (*METHODS, *EXACT_METHODS):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", out), name
    found = json.loads(run("methods", "--json"))
    assert [method["name"] for method in found] == [*METHODS, *EXACT_METHODS] and all(method["paper"] for method in found)


def test_help_of_every_verb(run):
    out = run("--help")
    for verb in VERBS:
        assert re.search(rf"^\W*{verb} ", out, re.MULTILINE)
        assert f"Usage: whence {verb}" in run(verb, "--help")
    assert re.match(r"\d+\.\d+\.\d+\n", run("--version"))


def test_help_groups_verbs_by_what_people_do_with_an_example_each(run):
    out = run("--help")
    assert sorted(verb for _, verbs in _USES.values() for verb in verbs) == sorted(_VERBS)
    for title, (example, verbs) in _USES.items():
        assert f"─ {title} ─" in out
        for line in example.splitlines():
            words = shlex.split(line)
            assert words[0] == "whence" and words[1] in verbs
            # The example is one that can be read: only what is behind its names is missing.
            app.parse_args(words[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_help_of_a_verb_shows_a_dozen_options_and_says_how_many_more_there_are(run, verb):
    def names(page):
        return re.findall(r"^│ (?:[ *]  )?(?:[A-Z]+ )?(-[\w-]+)", page, re.MULTILINE)

    short, whole = names(run(verb, "--help")), names(run(verb, "--help-all"))
    arguments = app[verb].assemble_argument_collection()
    required = sum(argument.required for argument in arguments)
    more = [name for name in whole if name not in short]
    if verb in FIRST:
        assert 10 <= len(short) <= FEW + required and short[-1] == "--help-all" and len(whole) > FEW
        assert "Instead, examples per batch" not in " ".join(run(verb, "--help").replace("│", " ").split())  # instead of what?
        assert f"Show {len(more)} more options." in run(verb, "--help") and set(short) - {"--help-all"} <= set(whole)
        assert set(FIRST[verb].split()) <= {name for argument in arguments for name in argument.names}
    else:
        assert short == whole and len(whole) <= FEW


# A model of one's own


def test_plain_pytorch_classifier(run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch, whence\n"
        "from torch import nn\n"
        "def task():\n"
        "    torch.manual_seed(0)\n"
        "    return whence.Classification(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))\n"
        "def data(first=0, count=9):\n"
        "    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))\n"
        "    return [{'id': f'p{i}', 'inputs': points[i], 'label': i % 2} for i in range(first, first + count)]\n"
        "def questions():\n"
        "    return data(15, 2)\n"
    )
    store = tmp_path / "store"
    made = json.loads(run("build", f"{path}:task", f"{path}:data", "-o", store, "--method", "logra"))
    assert made["rows"] == 9
    found = json.loads(run("query", store, "--trust", "--file", f"{path}:questions", "-k", "2", "--json"))
    assert [query["query"] for query in found["queries"]] == ["p15", "p16"]
    assert {hit["id"] for query in found["queries"] for hit in query["proponents"]} <= {f"p{number}" for number in range(9)}
    assert main(["query", str(store), "--trust", "--file", f"{path}:questions", "--tokens"]) == 2


def test_store_built_from_python_needs_a_model(tmp_path, capsys):
    from tests.test_store import SMALL, make_records, make_task
    from whence.pipeline import build

    build(make_task(), make_records(), tmp_path / "s", config=BuildConfig(method="grad-dot", **SMALL), runtime=QUIET)
    assert main(["query", str(tmp_path / "s"), "--text", "a"]) == 2
    err = capsys.readouterr().err
    assert "found a store built from Python in" in err and "do this: pass --model, or query it from Python" in err


# The process


def test_help_does_not_wait_for_torch():
    done = python("-X", "importtime", "-m", "whence", "--help")
    assert done.returncode == 0 and "Training data attribution" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "whence.cli" in imported and not imported & {"torch", "transformers", "datasets", "numpy"}


def test_importing_the_command_line_does_not_import_torch():
    done = python("-c", "import whence, whence.cli, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_status_and_output_of_a_process(tmp_path):
    done = python("-m", "whence", "inspect", str(tmp_path / "nope"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("whence: found no store at ") and done.stderr.count("\n") == 1


def test_interrupt(monkeypatch, capsys, store):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("whence.store.verify_store", stop)
    assert main(["verify", str(store)]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err == "whence: stopped; what was finished is kept: run the same command again to go on\n"


def test_unknown_failures_keep_their_traceback(monkeypatch, store):
    def bug(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("whence.store.verify_store", bug)
    with pytest.raises(ZeroDivisionError):
        main(["verify", str(store)])


@pytest.mark.parametrize("arguments", [["methods", "--json"], ["--help"]])
def test_a_closed_pipe_is_no_failure(arguments):
    """As in `whence methods | head -0`: the reader is gone before anything is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    # Buffered, as for everybody else: then the failure comes when the buffer is written, at the latest when Python exits.
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "whence", *arguments]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)
    finally:
        os.close(writer)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr == "" and done.returncode in (0, 1)


def test_every_verb_resolves():
    """Commands are given as strings, so a wrong name would show only when it is used."""
    for verb in VERBS:
        assert app[verb].default_command.__name__ == verb


# Methods


@pytest.mark.parametrize("method", ["trak", "grass", "grass-selective", "factgrass", "trackstar"])
def test_raw_stores_from_end_to_end(run, tmp_path, model_folder, data_file, method):
    folder = tmp_path / "store"
    build = ["build", model_folder, data_file, "-o", folder, "--method", method, "--rank", "4", "--rows-per-shard", "5"]
    made = json.loads(run(*build))
    forecast = json.loads(run("forecast", model_folder, data_file, "--method", method, "--rank", "4", "--json"))
    assert forecast["row_bytes"] == made["bytes_per_row"]
    told = json.loads(run("inspect", folder, "--json"))
    assert told["method"] == method and told["rows"] == made["rows"]
    assert json.loads(run("verify", folder, "--json"))["faults"] == []
    found = json.loads(run("query", folder, "--text", "a text to ask about", "--damping-rule", "lorif", "--json"))
    assert any("damping 0.5 x mean eigenvalue (the code of Li et al. 2026)" in note for note in found["notes"])
    assert any(found["queries"][0][side] for side in ("proponents", "opponents"))

"""The battery with tables that it makes: shuffled weights against a shuffled copy, planted data by hand, and from the command line."""

import copy
import json

import pytest
import torch
from torch import nn

import whence
from whence.errors import BadInput, Unsupported
from whence.evaluate import mixed_in, randomisation, shuffled, spearman, with_shortcut
from whence.evaluate.randomise import weight_layers

FIT = """
import torch
import whence

def fit(records, seed):
    assert all(set(record) <= {"id", "inputs", "label"} for record in records)  # marks are the battery's own
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    inputs = torch.tensor([record["inputs"] for record in records])
    labels = torch.tensor([record["label"] for record in records])
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return whence.Classification(model)

def trigger(record):
    record["inputs"][5] = 4.0
    return record

def nothing(record):
    return record

def no_task(records, seed):
    return None

def texts():
    return ["a text without a label", "another"]
"""


def small_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(9, 3, dtype=torch.float64)
    task = whence.Classification(model)
    data = task.prepare([(row, number % 2) for number, row in enumerate(inputs)])
    return task, data, data.spread(3)


def grad_dot(task, data, queries):
    return whence.attribute(task, data, queries, method="grad-dot-exact", runtime=whence.Runtime(quiet=True))


def test_a_cascade_equals_scores_of_shuffled_copies():
    task, data, queries = small_task()
    before = copy.deepcopy(task.model.state_dict())
    found = randomisation(task, lambda asked: grad_dot(asked, data, queries), stages=3, k=2, seed=7)
    assert [stage.layers for stage in found] == [("4",), ("2", "4"), ("0", "2", "4")]
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    true = grad_dot(task, data, queries)
    shuffled_before: dict[str, torch.Tensor] = {}
    for stage in found:
        other = copy.deepcopy(task.model)
        with shuffled(other, stage.layers, seed=7):
            weights = {name: value.clone() for name, value in other.state_dict().items()}
        for name, value in weights.items():
            is_shuffled = name.split(".")[0] in stage.layers
            assert torch.equal(value, before[name]) != is_shuffled
            assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
            # The stages of a cascade shuffle what was shuffled before in the same way.
            assert name not in shuffled_before or torch.equal(shuffled_before[name], value)
        shuffled_before |= {name: value for name, value in weights.items() if name.split(".")[0] in stage.layers}
        other.load_state_dict(weights)
        table = grad_dot(whence.Classification(other), data, queries)
        assert torch.allclose(stage.agreement.spearman_Q, spearman(true.scores.double(), table.scores.double()))
        ends = [set(scores.topk(2).indices.tolist()) for scores in (*true.scores, *table.scores)]
        assert stage.agreement.top_Q.tolist() == [len(ends[q] & ends[q + 3]) / 2 for q in range(3)]


def test_shared_weights_are_shuffled_once_and_spread_or_odd_ones_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [len(own) for _, own in weight_layers(model)] == [2, 1]
    model.register_parameter("codes", nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    with pytest.raises(Unsupported, match="quantised weights"), shuffled(model, ("", "0")):
        pass
    task, data, queries = small_task()
    with pytest.raises(BadInput, match="4 stages for a model of 3 layers"):
        randomisation(task, lambda asked: grad_dot(asked, data, queries), stages=4)


def test_weights_come_back_when_scoring_fails():
    task, _, _ = small_task()
    before = copy.deepcopy(task.model.state_dict())
    with pytest.raises(RuntimeError, match="no"), shuffled(task.model, ("0", "2")):
        raise RuntimeError("no")
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_a_shortcut_goes_to_its_class_and_to_queries_of_others():
    train = [{"id": str(n), "x": [n], "label": n % 2} for n in range(8)]
    queries = [{"id": f"q{n}", "x": [n], "label": n % 2} for n in range(4)]

    def trigger(record):
        record["x"].append(99)
        return record

    planted = with_shortcut(train, queries, trigger, label=1, share=0.5, seed=1)
    flagged = [record for record in planted.train if record.get("shortcut")]
    assert len(flagged) == 2 and all(record["label"] == 1 and record["x"][-1] == 99 for record in flagged)
    assert [record["id"] for record in planted.queries] == ["q0", "q2"]
    assert all(record["label"] == 1 and record["shortcut"] for record in planted.queries)
    assert all(record["x"] == [n] for n, record in enumerate(train)), "the records themselves are not changed"
    for share, label, match in (
        (0, 1, "share=0"),
        (0.5, 9, "0 training examples of class 9"),
        (0.01, 1, "0 to get the trigger"),
    ):
        with pytest.raises(BadInput, match=match):
            with_shortcut(train, queries, trigger, label=label, share=share)
    with pytest.raises(BadInput, match="changed nothing in record"):
        with_shortcut(train, queries, lambda record: record, label=1)
    with pytest.raises(BadInput, match="gave NoneType for record"):
        with_shortcut(train, queries, lambda record: None, label=1)
    with pytest.raises(BadInput, match="query 0 without a label"):
        with_shortcut(train, [{"x": 1}], trigger, label=1)


def test_foreign_records_get_one_label_and_some_are_asked_about():
    foreign = [{"x": n, "label": "whatever"} for n in range(6)]
    planted = mixed_in([{"x": 9, "label": "a"}], foreign, label="a", every=3)
    assert [record["x"] for record in planted.train] == [9, 1, 2, 4, 5] and [record["x"] for record in planted.queries] == [
        0,
        3,
    ]
    assert {record["label"] for record in (*planted.train, *planted.queries)} == {"a"}
    assert len({record["id"] for record in (*planted.train[1:], *planted.queries)}) == 6
    with pytest.raises(BadInput, match="the label 'b', which no training example has"):
        mixed_in([{"x": 9, "label": "a"}], foreign, label="b")
    with pytest.raises(BadInput, match="1 foreign records"):
        mixed_in([{"x": 9, "label": "a"}], foreign[:1], label="a")
    with pytest.raises(BadInput, match="foreign record 1, which is str"):
        mixed_in([{"x": 9, "label": "a"}], [*foreign[:1], "words"], label="a")


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(1)

    def records(count, prefix, shift=0.0):
        inputs = torch.randn(count, 6) + shift
        inputs[:, 5] = 0
        return [
            {"id": f"{prefix}{n}", "inputs": row.tolist(), "label": int(row[0] > 0), "subclass": int(row[0] > 0) + 2 * (n % 2)}
            for n, row in enumerate(inputs)
        ]

    for name, content in (("train", records(40, "t")), ("queries", records(12, "q")), ("foreign", records(16, "f", 6.0))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content))
    (tmp_path / "fit.py").write_text(FIT)
    return tmp_path


def words(files, *more, fit="fit"):
    data = ["--data", files / "train.jsonl", "--queries", files / "queries.jsonl"]
    return ["evaluate", "--battery", *data, *(["--fit", f"{files / 'fit.py'}:{fit}"] if fit else []), *more]


def test_the_whole_battery_from_the_command_line(run, files):
    planted = ["--trigger", f"{files / 'fit.py'}:trigger", "--foreign", files / "foreign.jsonl", "--planted-label", 1]
    given = words(files, *planted, "--method", "grad-cos", "--method", "grad-dot-exact", "-k", 5, "--stages", 2)
    content = json.loads(run(*given, "--json"))
    assert list(content) == ["grad-cos", "grad-dot-exact", "random", "loss", "similarity", "notes"]
    tests = {"class", "subclass", "overlap", "shortcut", "foreign"}
    tests |= {f"{name}, {count} of 2 layers" for name in ("randomised", "same top 5") for count in (1, 2)}
    assert all(set(content[name]) == tests for name in list(content)[:-1])
    # What is planted is found by the cosine, and not by chance.
    chance = content["random"]["foreign"]["mean"]
    assert content["grad-cos"]["foreign"]["mean"] > 2 * chance and content["grad-cos"]["shortcut"]["mean"] > 2 * chance
    # The states before the last layer do not change with its weights.
    assert content["similarity"]["randomised, 1 of 2 layers"]["mean"] == pytest.approx(1.0)
    assert any("12 of 52 training examples" in note for note in content["notes"])
    shown = run(*given)
    assert "grad-cos" in shown and "±" in shown and "is chance" in shown


def test_a_model_alone_has_no_planted_data(run, files):
    (files / "made.py").write_text(
        "import torch, whence\ndef task():\n    torch.manual_seed(0)\n    return whence.Classification(torch.nn.Linear(6, 2))\n"
    )
    given = words(files, "--model", f"{files / 'made.py'}:task", "--method", "grad-dot-exact", fit=None)
    content = json.loads(run(*given, "--json"))
    assert set(content["grad-dot-exact"]) == {"class", "subclass", "overlap", "randomised", "same top 10"}


@pytest.mark.parametrize(
    ("more", "fit", "message"),
    [
        ((), None, "found --battery without a table"),
        (("--model", "x"), "fit", "found --model with --fit"),
        (("--trigger", "x.py:f", "--model", "x"), None, "found --trigger without --fit"),
        (("--trigger", "x.py:f"), "fit", "found --trigger without --planted-label"),
        (("--planted-label", "1"), "fit", "found --planted-label without --trigger or --foreign"),
        (("--max-length", "5"), "fit", "found --max-length with --fit"),
        (("--randomised", "x"), "fit", "found --randomised without a table"),
        (("--method", "nonsense"), "fit", "nonsense"),
        (("--method", "source"), "fit", "without a run"),
        (("--trigger", "{}/fit.py:nothing", "--planted-label", "1"), "fit", "changed nothing"),
        (("--foreign", "{}/foreign.jsonl", "--planted-label", "7"), "fit", "found --planted-label 7"),
        (("--trigger", "x.py:f", "--planted-label", "1", "--flag", "shortcut"), "fit", "found --flag shortcut with --trigger"),
        (("--stages", "0"), "fit", "--stages 0"),
        (("--share", "0"), "fit", "--share 0"),
        (("-k", "0"), "fit", "--k 0"),
        (("--queries", "{}/queries.jsonl"), "fit", "found --queries more than once"),
        ((), "no_task", "which returned NoneType"),
        ((), "missing", "no function 'missing'"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(run, files, more, fit, message):
    (files / "empty.jsonl").write_text("")
    more = [str(word).format(files) for word in more]
    line = run(*words(files, "--method", "grad-dot-exact", *more, fit=fit), status=2)
    assert message in line and len(line.strip().splitlines()) == 1


def test_records_without_fields_have_no_label(run, files):
    data = ["--data", f"{files / 'fit.py'}:texts", "--queries", files / "queries.jsonl", "--fit", f"{files / 'fit.py'}:fit"]
    line = run("evaluate", "--battery", *data, "--foreign", files / "foreign.jsonl", "--planted-label", 1, status=2)
    assert "a label of the data: it has none" in line and len(line.strip().splitlines()) == 1


def test_no_bank_and_no_battery(run, files):
    (files / "train.jsonl").write_text("")
    assert "found no records in" in run(*words(files), status=2)
    assert "found no bank" in run("evaluate", status=2)
    assert "found --fit without --battery" in run("evaluate", "bank", "--fit", "x.py:f", status=2)
    assert "found --fit with tables" in run(*words(files, files / "table")[:2], files / "table", *words(files)[2:], status=2)

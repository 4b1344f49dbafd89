"""Queries from tasks by name: packages of the same interface as lm-evaluation-harness and Inspect, and the real ones where they are."""

import json
import sys
from dataclasses import asdict, dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import whence
from tests.settings import QUIET
from tests.test_lm_records import bytes_task
from whence.errors import BadInput
from whence.load import load_records
from whence.load.harness import harness_record
from whence.study.questions import questions_in


class Task:
    """As ConfigurableTask: requests of each document, with what it was made of."""

    multiple_input = 0

    def __init__(self, kind, documents):
        self.OUTPUT_TYPE, self.documents, self.shots = kind, documents, None

    def set_fewshot_seed(self, seed):
        self.shots = seed

    def doc_to_text(self, doc):
        return doc["question"]

    def doc_to_target(self, doc):
        return doc["answer"]

    def doc_to_choice(self, doc):
        return doc["choices"]

    def requests_of(self, doc):
        context = f"Example.\n{self.doc_to_text(doc)}"
        if self.OUTPUT_TYPE == "multiple_choice":
            return [(context, f" {choice}") for choice in self.doc_to_choice(doc)]
        return [
            {"generate_until": (context, {"until": ["\n"]}), "loglikelihood": (context, f" {self.doc_to_target(doc)}")}.get(
                self.OUTPUT_TYPE, (doc["question"],)
            )
        ]

    def build_all_requests(self, *, limit=None, rank=0, world_size=1):
        assert self.shots is not None  # as where examples are drawn
        self.instances = [
            SimpleNamespace(args=arguments, idx=index, doc_id=number, doc=doc)
            for number, doc in enumerate(self.documents[:limit])
            for index, arguments in reversed(list(enumerate(self.requests_of(doc))))
        ]


class Contexts(Task):
    """As winogrande: the contexts are the choices, and what is asked about is which of them."""

    multiple_input = 2

    def requests_of(self, doc):
        return [(choice, f" {doc['end']}") for choice in doc["choices"]]

    def doc_to_text(self, doc):
        return doc["right"]

    def doc_to_target(self, doc):
        return doc["end"]


CHOICE = {"question": "add 2 and 3:", "choices": ["4", "5", "6"], "answer": 1}
TASKS = {
    "sums": Task("multiple_choice", [CHOICE, {**CHOICE, "answer": "6"}, {**CHOICE, "answer": [0, 2]}]),
    "contexts": Contexts("multiple_choice", [{"choices": ["Ann", "Bob"], "end": "is tall", "right": 1}]),
    "said": Task("generate_until", [{"question": "where?", "answer": "here"}]),
    "last": Task("loglikelihood", [{"question": "the tower is in", "answer": "paris"}]),
    "text": Task("loglikelihood_rolling", [{"question": "a whole text", "answer": ""}]),
}


@pytest.fixture(params=["load", "get_task_dict"])
def lm_eval(request, monkeypatch):
    """The package, as of later and of earlier versions."""
    package, module = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")

    def chosen(names):
        if names == ["all"]:
            return {"sums": TASKS["sums"], "said": TASKS["said"]}
        return {name: TASKS[name] for name in names}

    class TaskManager:
        def __init__(self, include_path=None, include_defaults=True):
            self.include_path = include_path

        if request.param == "load":

            def load(self, names):
                return {"tasks": chosen(names)}

    module.TaskManager = TaskManager
    module.get_task_dict = lambda names, manager: {"group": chosen(names)}
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", module)


@dataclass
class Sample:
    input: Any
    target: Any = ""
    choices: list | None = None
    id: Any = None

    def model_dump(self, mode):
        assert mode == "json"
        return asdict(self)


@dataclass
class InspectTask:
    name: str
    dataset: list = field(default_factory=list)


@pytest.fixture
def inspect_ai(monkeypatch):
    samples = [
        Sample("Say hello", ["hello", "hi"]),
        Sample(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}], "B", ["three", "four"], "x"
        ),
        Sample("No answer is wanted"),
    ]
    tasks = {"evals/some": [InspectTask("some", samples[:2])], "evals/none": [InspectTask("none", samples)]}
    tasks["evals/two"] = [InspectTask("a", samples[:1]), InspectTask("b", samples[:1])]
    loader = ModuleType("inspect_ai._eval.loader")
    loader.load_tasks = lambda names: tasks.get(names[0], [])
    for name, module in (
        ("inspect_ai", ModuleType("inspect_ai")),
        ("inspect_ai._eval", ModuleType("_eval")),
        ("inspect_ai._eval.loader", loader),
    ):
        monkeypatch.setitem(sys.modules, name, module)


def test_tasks_of_lm_evaluation_harness(lm_eval):
    prompt = "Example.\nadd 2 and 3:"
    ends = [{"prompt": prompt, "completion": f" {end}"} for end in "456"]
    assert load_records("lm_eval:sums") == [
        {"id": "0", **ends[1], "answer": "5", "foil": [ends[0], ends[2]]},
        {"id": "1", **ends[2], "answer": "6", "foil": [ends[0], ends[1]]},
        {"id": "2", **ends[0], "answer": ["4", "6"], "foil": [ends[1]]},
    ]
    assert len(load_records("lm_eval:sums[:2]")) == 2
    bob = {"prompt": "Bob", "completion": " is tall"}
    assert load_records("lm_eval:contexts") == [
        {"id": "0", **bob, "answer": "is tall", "foil": [{"prompt": "Ann", "completion": " is tall"}]}
    ]
    assert load_records("lm_eval:said") == [{"id": "0", "prompt": "Example.\nwhere?", "completion": " here", "answer": "here"}]
    assert load_records("lm_eval:last")[0] == {
        "id": "0", "prompt": "Example.\nthe tower is in", "completion": " paris", "answer": "paris",
    }  # fmt: skip
    assert load_records("lm_eval:text") == [{"id": "0", "text": "a whole text"}]
    assert [record["id"] for record in load_records("lm_eval:all[:1]")] == ["sums/0", "said/0"]


def test_they_are_queries_of_a_study_and_of_every_verb(lm_eval):
    task = bytes_task(length=64)
    questions = questions_in(task, {"sums": load_records("lm_eval:sums")})
    assert questions.weights_QA[0].tolist() == [1, 0, 0, -0.5, -0.5, 0, 0, 0]
    train = [{"id": f"d{n}", "text": text} for n, text in enumerate(("2 and 3 are 5", "Bob is tall", "Ann"))]
    found = whence.attribute(task, train, load_records("lm_eval:contexts"), method="grad-dot-exact", runtime=QUIET)
    single = [
        whence.attribute(
            task, train, [{"prompt": name, "completion": " is tall"}], method="grad-dot-exact", runtime=QUIET
        ).scores
        for name in ("Bob", "Ann")
    ]
    assert found.scores.double().tolist()[0] == pytest.approx((single[0] - single[1]).double().tolist()[0], rel=1e-5)
    with pytest.raises(BadInput, match="record 0 with 2 foils"):
        task.prepare(load_records("lm_eval:sums"))


def test_tasks_of_inspect(inspect_ai):
    assert load_records("inspect:evals/some") == [
        {"id": "1", "prompt": "Say hello", "completion": " hello", "answer": ["hello", "hi"]},
        {
            "id": "x", "prompt": "Be brief.\n\nWhich?", "completion": " four", "answer": ["four"],
            "foil": [{"prompt": "Be brief.\n\nWhich?", "completion": " three"}],
        },
    ]  # fmt: skip
    assert [record["id"] for record in load_records("inspect:evals/two[:1]")] == ["a/1", "b/1"]
    with pytest.raises(BadInput, match="sample 3 of inspect:evals/none without a target"):
        load_records("inspect:evals/none")


def test_what_cannot_be_loaded_is_said_in_one_line(lm_eval, inspect_ai, monkeypatch):
    for name, message in (
        ("lm_eval:nonsense", "'lm_eval:nonsense', which cannot be loaded .KeyError"),
        ("inspect:evals/nonsense", "cannot be loaded .LookupError: no such task"),
        ("lm_eval:sums[:0]", "which takes nothing"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            load_records(name)
        assert "\n" not in str(caught.value)
    for package, install in (("lm_eval", "pip install lm_eval"), ("inspect", "pip install inspect-ai")):
        monkeypatch.setitem(sys.modules, {"inspect": "inspect_ai"}.get(package, "lm_eval.tasks"), None)
        with pytest.raises(BadInput, match=install):
            load_records(f"{package}:anything")


def test_a_logged_target_that_may_be_number_or_text_is_refused():
    sample = {"arguments": [["?", " 1"], ["?", " 2"], ["?", " 3"]], "target": "2"}
    with pytest.raises(BadInput, match="the target '2', which is several choices.*load the task by name"):
        harness_record("samples.jsonl", 0, sample)
    assert harness_record("samples.jsonl", 0, {**sample, "target": 2})["completion"] == " 3"  # a number is one
    same = {"arguments": [["Ann", " is tall"], ["Bob", " is tall"]], "target": "is tall"}
    with pytest.raises(BadInput, match="which is several choices"):
        harness_record("samples.jsonl", 0, same)


def test_a_study_with_the_old_name_of_foils_says_so():
    with pytest.raises(BadInput, match="a query with 'wrong'; needed 'foil'"):
        questions_in(bytes_task(length=48), {"a": [{"prompt": "a", "completion": " b", "wrong": " c"}]})


@pytest.mark.parametrize("foil", [5, [5], {"a", "b"}])
def test_a_foil_that_is_no_text_is_refused(foil):
    with pytest.raises(BadInput, match="a query with the foil"):
        questions_in(bytes_task(length=48), {"a": [{"prompt": "a", "completion": " b", "foil": foil}]})


def test_the_real_lm_evaluation_harness(tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "sums.jsonl").write_text(json.dumps({"q": "2 and 3 are", "a": 1, "c": ["4", "5", "6"]}) + "\n")
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path / 'sums.jsonl'}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\ndoc_to_choice: "{{c}}"\n'
        "metric_list:\n  - metric: acc\n"
    )
    ends = [{"prompt": "2 and 3 are", "completion": f" {end}"} for end in "546"]
    assert load_records(f"lm_eval:{tmp_path / 'sums.yaml'}") == [{"id": "0", **ends[0], "answer": "5", "foil": ends[1:]}]


def test_the_real_inspect(tmp_path):
    pytest.importorskip("inspect_ai")
    (tmp_path / "evals.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n@task\ndef some():\n"
        "    return Task(dataset=[Sample(input='Which?', choices=['three', 'four'], target='B')])\n"
    )
    record = {"id": "1", "prompt": "Which?", "completion": " four", "answer": ["four"]}
    foil = [{"prompt": "Which?", "completion": " three"}]
    assert load_records(f"inspect:{tmp_path / 'evals.py'}@some") == [{**record, "foil": foil}]


def test_a_generation_of_which_several_are_right_is_about_the_first():
    """As of triviaqa, whose target is a list of aliases."""
    sample = {"doc_id": 0, "arguments": [("where?", {"until": ["\n"]})], "target": ["here", "there"]}
    found = {"id": "0", "prompt": "where?", "completion": " here", "answer": ["here", "there"]}
    assert harness_record("t", 0, sample) == found
    assert harness_record("t", 0, {**sample, "target": ("here",)}) == {**found, "answer": "here"}
    assert harness_record("t", 0, {**sample, "target": "['here', 'there']"}) == found  # as logs have it
    for text in ("[", "[see here]", "[1.5]", "(1, 2)"):
        assert harness_record("t", 0, {**sample, "target": text})["answer"] == text
    for nothing in ([], "[]"):
        with pytest.raises(BadInput, match="sample 0 of t without a target"):
            harness_record("t", 0, {**sample, "target": nothing})

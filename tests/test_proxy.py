"""Proxies: other weights, sizes and tokenizers attribute for a target; distillation; agreement on a probe."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.pages import page_commands, run_blocks, run_example
from tests.settings import QUIET
from whence.errors import BadInput, NonFinite
from whence.evaluate import load_table, origin_of_table, save_table
from whence.score import mean_table

TEXTS = [
    {"id": f"t{number}", "text": text} for number, text in enumerate(["a cat sat", "the dog ran off", "one bird sleeps there"])
]


def classifiers(widths=(5, 4)):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).double() for width in widths]
    records = [(torch.randn(6, dtype=torch.float64), number % 3) for number in range(12)]
    return (*map(whence.Classification, models), records)


def language_task(folder, **options):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return whence.CausalLM(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), **options)


def test_a_proxy_attributes_as_it_would_for_itself_and_says_for_whom(tmp_path):
    target, proxy, records = classifiers()
    table = whence.proxy.proxy_table(proxy, target, records, records[:2], name="narrow", runtime=QUIET)
    own = whence.attribute(proxy, records, records[:2], runtime=QUIET)
    assert torch.equal(table.scores, own.scores) and table.train_ids == own.train_ids
    assert table.method == f"{own.method}, by proxy narrow"
    assert table.provenance["attributor"] == proxy.weights and table.provenance["target"] == target.weights
    assert table.provenance["train"] == proxy.prepare(records).fingerprint
    assert target.weights[:8] in table.notes[0]
    save_table(table, tmp_path / "table")
    assert load_table(tmp_path / "table").provenance == table.provenance


def test_several_proxies_average_and_are_all_named(tmp_path):
    target, proxy, records = classifiers()
    tables = [
        whence.proxy.proxy_table(one, target, records, records[:2], name="narrow", runtime=QUIET) for one in (target, proxy)
    ]
    ensemble = whence.score.Ensemble(tmp_path / "both")
    for place, table in enumerate(tables):
        ensemble.add(table, member=str(place))
    for mean in (ensemble.table(), mean_table(tables)):
        assert torch.allclose(mean.scores, (tables[0].scores + tables[1].scores) / 2)
        assert mean.provenance["attributor"] == f"{target.weights}, {proxy.weights}"
        assert mean.provenance["target"] == target.weights


def test_a_target_that_cannot_be_loaded_is_named():
    _, proxy, records = classifiers()
    table = whence.proxy.proxy_table(proxy, "a closed model", records, records[:1], method="grad-dot-exact", runtime=QUIET)
    assert table.provenance["target"] == "a closed model" and "for the model a closed model" in table.notes[0]
    assert table.method.endswith(f"by proxy {proxy.weights[:8]}")


def test_windows_of_another_tokenizer_are_added_up_by_record(model_folder, other_tokenizer_folder):
    target, proxy = language_task(model_folder), language_task(other_tokenizer_folder, long="split", max_length=6)
    queries = [{"id": "q0", "text": "a bird sat"}, {"id": "q1", "text": "dogs"}]
    table = whence.proxy.proxy_table(proxy, target, TEXTS, queries, runtime=QUIET)
    whole = whence.attribute(proxy, TEXTS, queries, runtime=QUIET)
    assert table.train_ids == ("t0", "t1", "t2") and table.query_ids == ("q0", "q1")
    assert table.scores.shape == (2, 3) and len(whole.train_ids) == 9 and len(whole.query_ids) == 3
    for row, query in enumerate(table.query_ids):  # the slow way round
        for column, record in enumerate(table.train_ids):
            parts = [
                float(whole.scores[i, j])
                for i, asked in enumerate(whole.query_ids)
                for j, window in enumerate(whole.train_ids)
                if asked.split("#")[0] == query and window.split("#")[0] == record
            ]
            assert float(table.scores[row, column]) == pytest.approx(sum(parts), rel=1e-9)
    assert "scores of 9 windows of 3 training records are added up" in table.notes


def test_ids_that_hold_a_number_sign_stay_whole(model_folder):
    task = language_task(model_folder)
    records = [{"id": f"doc#{number}", "text": one["text"]} for number, one in enumerate(TEXTS)]
    table = whence.proxy.proxy_table(task, "x", records, records[:1], method="grad-dot-exact", runtime=QUIET)
    assert table.train_ids == ("doc#0", "doc#1", "doc#2")


def test_prepared_data_of_another_tokenizer_is_refused(model_folder, other_tokenizer_folder):
    target, proxy = language_task(model_folder), language_task(other_tokenizer_folder)
    with pytest.raises(
        BadInput, match="prepared data for a proxy and a target with different tokenizers; .*; do this: pass the texts"
    ):
        whence.proxy.proxy_table(proxy, target, target.prepare(TEXTS), TEXTS, runtime=QUIET)


def test_a_task_that_renames_records_is_refused():
    _, proxy, records = classifiers()
    renamed = [{"id": number, "inputs": row, "label": label} for number, (row, label) in enumerate(records)]
    whence.proxy.proxy_table(proxy, "x", renamed, renamed[:1], method="grad-dot-exact", runtime=QUIET)
    proxy.prepare = lambda given: type(proxy).prepare(proxy, [{**one, "id": f"z{one['id']}"} for one in given])
    with pytest.raises(BadInput, match="an example 'z0' of no record, such as '0'"):
        whence.proxy.proxy_table(proxy, "x", renamed, renamed[:1], method="grad-dot-exact", runtime=QUIET)


def test_one_text_is_no_data():
    _, proxy, records = classifiers()
    with pytest.raises(BadInput, match="one string as data"):
        whence.proxy.proxy_table(proxy, "x", "train.jsonl", records, runtime=QUIET)


def test_a_model_agrees_with_itself_and_less_with_another():
    target, proxy, records = classifiers()
    same = whence.proxy.proxy_agreement(
        target, target, records, records[:3], probe=whence.settings.ProbeConfig(k=3), runtime=QUIET
    )
    assert same.spearman.mean == pytest.approx(1) and same.top.mean == 1 and same.num_examples == 12
    other = whence.proxy.proxy_agreement(
        proxy, target, records, records, probe=whence.settings.ProbeConfig(train=8, queries=4, k=2), runtime=QUIET
    )
    assert other.num_examples == 8 and len(other.query_ids) == 4
    assert -1 <= other.spearman.low <= other.spearman.mean < 1


def test_a_probe_keeps_the_ids_of_its_records(model_folder):
    task = language_task(model_folder)
    named = whence.proxy.proxy_agreement(
        task, task, TEXTS, TEXTS, probe=whence.settings.ProbeConfig(train=2, queries=2, k=1), runtime=QUIET
    )
    assert named.query_ids == ("t0", "t1")
    plain = [{"text": one["text"]} for one in TEXTS]
    assert whence.proxy.proxy_agreement(
        task, task, plain, plain[1:], probe=whence.settings.ProbeConfig(train=2, queries=1, k=1), runtime=QUIET
    ).query_ids == ("0",)
    prepared = task.prepare(TEXTS)
    assert whence.proxy.proxy_agreement(
        task, task, prepared, prepared, probe=whence.settings.ProbeConfig(train=2, queries=1, k=1), runtime=QUIET
    ).query_ids == ("t0",)


def test_a_probe_that_ranks_nothing_is_refused():
    target, proxy, records = classifiers()
    with pytest.raises(BadInput, match="a probe of 1 training records and 3 queries"):
        whence.proxy.proxy_agreement(
            proxy, target, records, records, probe=whence.settings.ProbeConfig(train=1, queries=3), runtime=QUIET
        )


@pytest.mark.parametrize("name", ["linear", "gpt2", "regression"])
def test_the_first_step_goes_down_the_distance(name):
    """One step with plain autograd of the definition is the step that is taken."""
    target, dataset = zoo.make(name)
    torch.manual_seed(5)
    proxy = copy.copy(target)
    proxy.model = copy.deepcopy(target.model)
    for value in proxy.model.parameters():
        value.data += 0.3 * torch.randn_like(value)
    twin = copy.deepcopy(proxy.model)
    config = whence.settings.DistilConfig(epochs=1, batch_examples=len(dataset), learning_rate=1e-2)
    order = np.random.default_rng(0).permutation(len(dataset))
    found = whence.proxy.distil(target, proxy, dataset, config, quiet=True)
    batch = target.collate([dataset.examples[place] for place in order])
    with torch.no_grad():
        wanted = target.outputs(target.model.eval(), batch).values_MC
    given = target.outputs(twin.eval(), batch).values_MC
    if name == "regression":
        distance = (0.5 * (given - wanted) ** 2).sum() / len(given)
    else:
        distance = (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum() / len(given)
    assert found.losses == (pytest.approx(float(distance.detach()), rel=1e-10),) and found.steps == 1
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    distance.backward()
    optimizer.step()
    for mine, slow in zip(proxy.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("is_sampled", [False, True])
def test_distillation_reaches_the_target_and_repeats(is_sampled):
    target, _, records = classifiers()
    records = records * 20
    ends = []
    for _ in range(2):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        proxy = whence.Classification(model)
        before = target.weights
        config = whence.settings.DistilConfig(epochs=20, learning_rate=0.05, is_sampled=is_sampled)
        found = whence.proxy.distil(target, proxy, records, config, quiet=True)
        inputs = torch.stack([row for row, _ in records])
        with torch.no_grad():
            logs = target.model(inputs).log_softmax(1), model(inputs).log_softmax(1)
        ends.append((found.losses, float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean())))
        assert target.weights == before and model.training
    assert ends[0] == ends[1]
    assert ends[0][1] < 0.02 and (is_sampled or ends[0][0][-1] < 0.1 * ends[0][0][0])


def test_distillation_refuses_what_it_cannot_do(model_folder, other_tokenizer_folder):
    target, proxy, records = classifiers()
    with pytest.raises(BadInput, match="0 epochs of batches of 16"):
        whence.settings.DistilConfig(epochs=0)
    with pytest.raises(BadInput, match="a proxy and a target with different tokenizers; needed answers over the same tokens"):
        whence.proxy.distil(language_task(model_folder), language_task(other_tokenizer_folder), TEXTS)
    with pytest.raises(BadInput, match="a proxy that shares weights with its target"):
        whence.proxy.distil(target, target, records)
    frozen = whence.Classification(copy.deepcopy(proxy.model))
    frozen.model.requires_grad_(False)
    with pytest.raises(BadInput, match="a proxy without trainable weights"):
        whence.proxy.distil(target, frozen, records)
    wide = whence.Classification(nn.Linear(6, 4).double())
    with pytest.raises(BadInput, match=r"answers of shape \(12, 3\) \(categorical\) of the target and \(12, 4\)"):
        whence.proxy.distil(target, wide, records, quiet=True)
    proxy.model[0].weight.data.fill_(float("nan"))
    with pytest.raises(NonFinite, match="a distance of nan between proxy and target"):
        whence.proxy.distil(target, proxy, records, quiet=True)


def test_the_command_attributes_distils_and_probes(tmp_path, run, model_folder, other_model_folder, data_file):
    ask = ["proxy", other_model_folder, data_file, data_file, "-o", tmp_path / "t", "--target", model_folder]
    found = json.loads(run(*ask, "--probe", 3, "--name", "tiny", "--json"))
    table = load_table(tmp_path / "t")
    assert found["provenance"] == table.provenance and table.method.endswith("by proxy tiny")
    assert (
        table.scores.shape == (12, 12) and found["agreement"]["num_examples"] == 12 and len(found["agreement"]["queries"]) == 3
    )
    # Its own target is matched exactly by whoever starts at it, and better by whoever learns from it.
    ask[5] = tmp_path / "own"
    own = json.loads(run(*ask[:1], model_folder, *ask[2:], "--distil", 1, "--json"))
    assert own["distil"] == [pytest.approx(0, abs=1e-6)]
    learn = ["--distil", 3, "--learning-rate", "0.01", "--save-model", tmp_path / "learnt", "--batch-examples", 4]
    ask[5] = tmp_path / "trained"
    text = run(*ask, *learn, "--probe", 2, "--probe-train", 8)
    assert "for the model" in text and "distance from the target" in text and "on 2 queries and 8 examples" in text
    assert whence.proxy.proxy_table(language_task(tmp_path / "learnt"), "x", TEXTS, TEXTS, runtime=QUIET).scores.shape == (3, 3)
    ask[5] = tmp_path / "named"
    named = json.loads(run(*ask[:-2], "--target-name", "closed", "--distil", 0, "--json"))
    assert named["provenance"]["target"] == "closed"
    origin = origin_of_table(ask[5])
    assert origin["models"] == [named["provenance"]["attributor"]] and origin["queries"] == named["provenance"]["queries"]
    assert "made with other settings (target); needed a new folder" in run(*ask[:-2], "--target-name", "another", status=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "found no target; needed one of the two"),
        (["--target", "M", "--target-name", "x"], "found both --target and --target-name"),
        (["--target-name", "x", "--probe", "2"], "found --probe for a target that is only named"),
        (["--target-name", "x", "--distil", "2"], "found --distil for a target that is only named"),
        (["--target", "M", "--sampled"], "found --sampled without --distil"),
        (["--target", "M", "--learning-rate", "1"], "found --learning-rate without --distil"),
        (["--target", "M", "--probe-train", "9"], "found --probe-train without --probe"),
        (["--target", "nowhere/at/all"], "no model folder at nowhere/at/all"),
    ],
)
def test_the_command_refuses(tmp_path, run, model_folder, data_file, options, says):
    options = [str(model_folder) if option == "M" else option for option in options]
    error = run("proxy", model_folder, data_file, data_file, "-o", tmp_path / "t", *options, status=2)
    assert says in error and error.count("\n") == 1 and not (tmp_path / "t").exists()


def test_the_command_saves_hugging_face_models_only(tmp_path, run):
    (tmp_path / "task.py").write_text(
        "import torch, whence\n"
        "def make():\n    torch.manual_seed(0)\n    return whence.Classification(torch.nn.Linear(3, 2))\n"
        "def data():\n    return [(torch.ones(3) * i, i % 2) for i in range(6)]\n"
    )
    ask = ["proxy", f"{tmp_path}/task.py:make", f"{tmp_path}/task.py:data", f"{tmp_path}/task.py:data", "-o", tmp_path / "t"]
    ask += ["--target", f"{tmp_path}/task.py:make", "--distil", 1]
    assert "found --save-model for a Linear" in run(*ask, "--save-model", tmp_path / "m", status=2)
    assert "6 queries, 6 training examples" in run(*ask)


def test_the_page_about_proxies_is_true(run, reader):
    (reader / "path" / "to" / "proxy").symlink_to("model")
    (reader / "questions.jsonl").symlink_to("train.jsonl")
    for words in page_commands("docs/proxies.md", 2):
        run(*words)
    run_blocks("docs/proxies.md", 1)


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    printed = run_example("proxies/python_docs.py", tmp_path, "--documents", "300", "--epochs", "2")
    assert "untrained" in printed and "distilled" in printed
    assert load_table(tmp_path / "distilled").provenance["target"] == load_table(tmp_path / "untrained").provenance["target"]

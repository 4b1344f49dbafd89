"""A target known by its recorded outputs: distillation, how far to trust it, tables by stores, runs and baselines."""

import copy
import json

import numpy as np
import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from tests.test_lm_records import bytes_task
from whence.errors import BadInput, Unsupported
from whence.proxy import distil_recorded, proxy_table, trust_recorded
from whence.score import representation_similarity, representer_scores
from whence.settings import DistilConfig

TEXTS = ["a cat sat on a mat", "the dog ran off", "one bird sleeps", "cats and dogs", "what is it", "my fish swims"]
TRAIN = [{"id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]


@pytest.fixture
def proxy():
    return bytes_task(length=48)


def moved(task, size=0.5):
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return whence.CausalLM(model, task.tokenizer)


def log_probabilities(task, record):
    """Of every token of the completion, one at a time."""
    before, after = (task.tokenizer(record[name])["input_ids"] for name in ("prompt", "completion"))
    ids, found = list(before), []
    for token in after:
        logits = task.model(input_ids=torch.tensor([ids])).logits[0, -1].detach()
        found.append(float(logits.log_softmax(0)[token]))
        ids.append(token)
    return found


@pytest.fixture
def outputs(proxy):
    target = moved(proxy)
    records = [{"prompt": text[:5], "completion": text[5:]} for text in TEXTS]
    return [{**record, "token_log_probabilities": log_probabilities(target, record)} for record in records]


def without(outputs):
    return [{name: value for name, value in record.items() if name != "token_log_probabilities"} for record in outputs]


def test_the_first_distance_is_its_definition(proxy, outputs):
    own = [log_probabilities(proxy, record) for record in outputs]
    count = sum(map(len, own))
    config = DistilConfig(epochs=1, batch_examples=len(outputs), learning_rate=1e-9)
    nats = distil_recorded(copy.deepcopy(proxy), without(outputs), config, quiet=True).losses[0]
    assert nats == pytest.approx(-sum(map(sum, own)) / count, rel=1e-9)
    total = 0.0
    for record, row in zip(outputs, own, strict=True):
        for p, q in zip(np.exp(record["token_log_probabilities"]), np.exp(row), strict=True):
            total += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    binary = distil_recorded(copy.deepcopy(proxy), outputs, config, quiet=True).losses[0]
    assert binary == pytest.approx(total / count, rel=1e-7) and binary > 0


def test_a_copy_of_the_target_has_no_distance(proxy, outputs):
    target = moved(proxy)
    found = distil_recorded(target, outputs, DistilConfig(epochs=1, learning_rate=1e-12), quiet=True)
    assert found.losses[0] == pytest.approx(0, abs=1e-9)
    trust = trust_recorded(target, outputs)
    assert trust.gap.mean == pytest.approx(0, abs=1e-9) and trust.spearman == 1 and trust.token_spearman == pytest.approx(1)


@pytest.mark.parametrize("has_values", [True, False])
def test_distilling_comes_nearer(proxy, outputs, has_values):
    records = outputs if has_values else without(outputs)
    before = trust_recorded(proxy, outputs)
    found = distil_recorded(proxy, records, DistilConfig(epochs=30, learning_rate=3e-3, batch_examples=3), quiet=True)
    after = trust_recorded(proxy, outputs)
    assert found.losses[-1] < 0.8 * found.losses[0] and not proxy.model.training
    assert after.nats.mean < before.nats.mean if not has_values else after.token_spearman > before.token_spearman + 0.1


def test_trust_is_its_definition(proxy, outputs):
    own = [log_probabilities(proxy, record) for record in outputs]
    theirs = [record["token_log_probabilities"] for record in outputs]
    trust = trust_recorded(proxy, outputs)
    assert trust.nats.mean == pytest.approx(np.mean([-np.mean(row) for row in own]))
    assert trust.gap.mean == pytest.approx(np.mean([np.mean(b) - np.mean(a) for a, b in zip(own, theirs, strict=True)]))
    from scipy import stats

    assert trust.spearman == pytest.approx(stats.spearmanr([sum(row) for row in own], [sum(row) for row in theirs]).statistic)
    tokens = stats.spearmanr(np.concatenate(own), np.concatenate(theirs)).statistic
    assert trust.token_spearman == pytest.approx(tokens) and trust.outputs == len(outputs)
    plain = trust_recorded(proxy, without(outputs))
    assert plain.gap is None and plain.spearman is None and plain.nats.mean == trust.nats.mean


def test_records_that_do_not_fit_are_refused(proxy, outputs):
    with pytest.raises(BadInput, match="5 of 6 outputs with token_log_probabilities"):
        distil_recorded(proxy, [*outputs[:5], without(outputs)[5]], quiet=True)
    short = [{**outputs[0], "token_log_probabilities": [-1.0]}]
    with pytest.raises(BadInput, match="1 log-probabilities for the 13 tokens of the output '0'"):
        trust_recorded(proxy, short)
    with pytest.raises(BadInput, match="none of them above 0"):
        trust_recorded(proxy, [{**outputs[0], "token_log_probabilities": [1.0] * 13}])
    with pytest.raises(Unsupported, match="a causal language model"):
        distil_recorded(zoo.make("linear")[0], outputs, quiet=True)


def slow_representer(task, train, queries):
    """Position by position, from whole logits and the features that enter the head."""
    table = np.zeros((len(queries), len(train)))

    def read(example):
        seen = []
        handle = task.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        ids = torch.tensor(example.fields["input_ids"])[None]
        logits = task.model(input_ids=ids).logits[0].detach()
        handle.remove()
        labels = example.fields["labels"]
        return [
            (seen[0][0, at - 1].detach(), logits[at - 1], int(labels[at])) for at in range(1, len(labels)) if labels[at] >= 0
        ]

    for row, query in enumerate(queries.examples):
        for column, document in enumerate(train.examples):
            for feature, _, token in read(query):
                for other, logits, label in read(document):
                    slope = float(logits.softmax(0)[token]) - (token == label)
                    table[row, column] += -slope * float(other @ feature) / len(train)
    return table


def test_representer_points_are_their_definition(proxy):
    train = proxy.prepare(TRAIN)
    queries = proxy.prepare([{"prompt": "a dog", "completion": " sat"}, {"text": "it is"}])
    for positions in (4096, 20):
        table = representer_scores(proxy, train, queries, max_positions=positions, quiet=True)
        np.testing.assert_allclose(table.scores, slow_representer(proxy, train, queries), rtol=1e-8, atol=1e-14)
    task, data = zoo.make("linear")
    with pytest.raises(Unsupported, match="representation_similarity"):
        representer_scores(task, data, data)


def test_proxy_tables_by_baselines_stores_and_runs(proxy, tmp_path):
    train, queries = proxy.prepare(TRAIN), ["a cat ran", "my dog"]
    for method, function in (("representation", representation_similarity), ("representer", representer_scores)):
        table = proxy_table(proxy, "closed", TRAIN, queries, method=method, runtime=QUIET)
        torch.testing.assert_close(table.scores, function(proxy, train, proxy.prepare(queries), quiet=True).scores)
        assert table.provenance["target"] == "closed" and "by proxy" in table.method
    store = whence.build(proxy, train, tmp_path / "store", config=whence.BuildConfig(method="logra", rank=4), runtime=QUIET)
    table = proxy_table(proxy, "closed", store, queries, name="stored", runtime=QUIET)
    assert torch.equal(table.scores, whence.score_table(store, proxy, queries, runtime=QUIET).scores)
    assert table.train_ids == train.ids and table.provenance["train"] == store.digest
    model = proxy.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with whence.Recorder(tmp_path / "run", model, optimizer, every=2, seed=0) as recorder:
        for step in range(recorder.restore(), 4):
            some = [train.examples[(2 * step + offset) % 6] for offset in range(2)]
            recorder.batch([example.id for example in some])
            optimizer.zero_grad()
            proxy.loss(model, proxy.collate(some)).mean().backward()
            optimizer.step()
    method = whence.Source(run=tmp_path / "run")
    table = proxy_table(proxy, "closed", train, proxy.prepare(queries), method=method, runtime=QUIET)
    own = whence.attribute(proxy, train, proxy.prepare(queries), method=method, runtime=QUIET)
    torch.testing.assert_close(table.scores, own.scores)


def test_from_the_command_line(run, tmp_path, model_folder, data_file, proxy):
    outputs = tmp_path / "outputs.jsonl"
    records = [
        {"prompt": "a cat", "completion": f" sat {number}", "token_log_probabilities": [-1.0] * 6} for number in range(9)
    ]
    outputs.write_text("".join(json.dumps(record) + "\n" for record in records))
    named = ("--target-name", "closed", "-o", tmp_path / "table")
    content = run("proxy", model_folder, data_file, data_file, *named, "--recorded", outputs, "--distil", 1, "--probe", 3)
    assert "3 outputs held out" in content and "rank correlation of the two models" in content
    run("build", model_folder, data_file, "-o", tmp_path / "store", "--method", "logra", "--rank", 4)
    stored = run(
        "proxy", model_folder, tmp_path / "store", data_file, "--target-name", "closed", "-o", tmp_path / "stored", "--json"
    )
    assert json.loads(stored)["train"] == 12
    baseline = ("--by", "representer", "--target-name", "closed", "-o", tmp_path / "base")
    assert "representer points" in run("proxy", model_folder, data_file, data_file, *baseline)
    for options, says in (
        (("--recorded", outputs), "--recorded without --distil"),
        (("--distil", 1), "--distil for a target that is only named"),
        (("--recorded", outputs, "--distil", 1, "--sampled"), "--recorded with --sampled"),
    ):
        assert says in run(
            "proxy", model_folder, data_file, data_file, "--target-name", "x", "-o", tmp_path / "n", *options, status=2
        )
    refused = run(
        "proxy",
        model_folder,
        tmp_path / "store",
        data_file,
        "--target-name",
        "x",
        "-o",
        tmp_path / "n",
        "--by",
        "representer",
        status=2,
    )
    assert "--by with a store of the proxy's gradients" in refused

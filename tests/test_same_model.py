"""A model with the right weights that computes something else is refused, wherever weights are compared; what changes no gradient is not."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import whence
from tests.conftest import save_language_model
from tests.settings import QUIET, keywords_of, settings_of
from whence.capture import ModelRecord, check_model, plan_units
from whence.digests import digested_once
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.pipeline.stored.same_model import PROBE_FILE
from whence.store import Blueprint, open_store, read_tensors, sha256_of, write_json, write_tensors
from whence.tasks import base, differences, structure_of
from whence.tasks.structure import Structure

METHODS = {"aligned": {}, "logra": {"rank": 3}, "lorif": {"rank": 5}, "grass": {"rank": 64}, "trackstar": {}}


class Net(nn.Module):
    """Two layers with a function between that is written in Python."""

    def __init__(self, function=torch.relu, eps=1e-5, wait=0):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.LayerNorm(16, eps=eps), nn.Linear(16, 3)
        self._function, self.wait, self.calls = function, wait, 0

    def forward(self, inputs):
        self.calls += 1
        return self.last(self._function(self.norm(self.first(inputs))))


def task_of(model=Net, *arguments, **options):
    torch.manual_seed(0)
    return whence.Classification(model(*arguments, **options))


def chain(*middle):
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.Linear(16, 3))


def records(count=14, first=0):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 6, generator=generator)
    return [{"id": str(number), "inputs": inputs[number], "label": number % 3} for number in range(first, first + count)]


def refused(what="computes something else"):
    return pytest.raises(StoreMismatch, match=what)


# What structure says


@pytest.mark.parametrize(
    ("there", "here", "what"),
    [
        (chain(nn.ReLU()), chain(nn.Tanh()), "'1' is torch.nn.ReLU there and torch.nn.Tanh here"),
        (chain(nn.GELU()), chain(nn.GELU("tanh")), "approximate='none' there and approximate='tanh' here"),
        (chain(nn.LayerNorm(16)), chain(nn.LayerNorm(16, eps=1e-3)), "eps=1e-05 there and eps=0.001 here"),
        (chain(nn.LeakyReLU()), chain(nn.LeakyReLU(0.2)), "negative_slope=0.01 there and negative_slope=0.2 here"),
        (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "'1' is no module there and torch.nn.Tanh here"),
        (nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode='zeros' there"),
        (
            nn.TransformerEncoderLayer(8, 2, activation="relu"),
            nn.TransformerEncoderLayer(8, 2, activation="gelu"),
            "activation='function relu' there and activation='function gelu' here",
        ),
    ],
)  # fmt: skip
def test_structure_tells_layers_and_their_settings_apart(there, here, what):
    there = Structure.from_json(json.loads(json.dumps(asdict(structure_of(there)))))
    found = differences(there, structure_of(here))
    assert found[0].is_certain and what in found[0].what
    with refused(what):
        check_model(ModelRecord(there, None), ModelRecord(structure_of(here), None), "a store")


def test_structure_leaves_out_what_changes_no_gradient():
    def model(p, **options):
        return nn.Sequential(
            nn.Embedding(9, 8, **options),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, dropout=p), 3),
            nn.BatchNorm1d(8),
        )

    plain = structure_of(model(0.1))
    other = model(0.5, sparse=True).train()
    other[1].layers[0].dropout = nn.Identity()
    other[2].momentum = 0.01
    assert not differences(plain, structure_of(other))
    assert not differences(plain, structure_of(torch.compile(model(0.0))))
    assert set(plain.modules) >= {"*.layers.*.norm1"}  # equal layers are said once


def test_one_layer_of_many_that_differs_is_named():
    def model(activations):
        return nn.ModuleList([chain(activation()) for activation in activations])

    there, here = (structure_of(model(kinds)) for kinds in ([nn.ReLU] * 3, [nn.ReLU, nn.Tanh, nn.ReLU]))
    for one, other in ((there, here), (here, there)):
        found = differences(one, other)
        assert len(found) == 1 and "'1.1' is torch.nn" in found[0].what and found[0].is_certain


def language_model(**options):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    known = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 20, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**known | options))


def test_configurations_are_compared_by_what_they_make_a_model_compute():
    there = structure_of(language_model())
    for options, word in (
        ({"activation_function": "relu"}, "activation_function='gelu_new' there and 'relu' here"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon=1e-05 there and 0.001 here"),
        ({"n_head": 4}, "n_head=2 there and 4 here"),
        ({"scale_attn_weights": False}, "scale_attn_weights=True there and False here"),
    ):
        found = differences(there, structure_of(language_model(**options)))
        assert any(one.is_certain and word in one.what for one in found), options
    for options in (
        {"attn_pdrop": 0.0, "resid_pdrop": 0.5}, {"use_cache": False}, {"attn_implementation": "eager"}, {"eos_token_id": 3},
        {"num_labels": 5},
    ):  # fmt: skip
        assert not differences(there, structure_of(language_model(**options))), options
    found = differences(there, structure_of(language_model(pad_token_id=3)))
    assert [one.is_certain for one in found] == [False]


# Stores


@pytest.mark.parametrize("method", METHODS)
def test_a_store_refuses_another_function_in_a_forward_of_python(tmp_path, method):
    options = {"method": method, **METHODS[method]}
    store = whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    assert PROBE_FILE in store.files
    for function in (F.relu, lambda values: values.clamp_min(0)):  # the same in other words
        assert whence.query(store, task_of(Net, function), records(2), runtime=QUIET).proponents
    for function in (torch.tanh, lambda values: 1.01 * values.relu()):
        other = task_of(Net, function)
        assert other.weights == store.blueprint.model
        with refused("'0' .* where .* is recorded"):
            whence.query(store, other, records(2), runtime=QUIET)
        with refused():
            whence.build(
                other, records(4, 20), tmp_path / "s", append=True, config=whence.BuildConfig(**options), runtime=QUIET
            )
        with refused():
            whence.build(other, records(), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    whence.build(task_of(), records(4, 20), tmp_path / "s", append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    store = open_store(tmp_path / "s")
    assert len(store) == 18
    assert whence.query(store, task_of(), records(2), runtime=QUIET).proponents
    with refused():
        whence.score_table(store, task_of(Net, torch.tanh), records(2), runtime=QUIET)


def test_a_store_refuses_another_setting_of_a_layer_however_little_it_changes(tmp_path):
    store = whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    with refused("'norm' .torch.nn.LayerNorm. has eps=1e-05 there and eps=1.1e-05 here"):
        whence.query(store, task_of(Net, eps=1.1e-5), records(2), runtime=QUIET)


def test_what_a_module_counts_is_no_other_model(tmp_path):
    store = whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    other = task_of(Net, wait=3)
    other.model.calls = 100
    other.model.train()
    found = whence.query(store, other, records(2), runtime=QUIET)
    assert found.to_dict() == whence.query(store, task_of(), records(2), runtime=QUIET).to_dict()


def test_a_build_that_was_stopped_goes_on_with_its_own_model_only(tmp_path, monkeypatch):
    """Before there is a finished store to be asked."""
    options = {"method": "logra", "rows_per_shard": 4}

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("whence.store.writer.Writer.finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    with refused():
        whence.build(task_of(Net, torch.tanh), records(), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)
    assert len(whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(**options), runtime=QUIET)) == 14


@pytest.mark.parametrize("changed", [{"activation_function": "relu"}, {"layer_norm_epsilon": 0.1}])
def test_the_command_line_refuses_a_changed_configuration(tmp_path, run, model_folder, data_file, changed):
    run("build", model_folder, data_file, "-o", tmp_path / "s", "--method", "logra", "--rank", "4")
    run("attribute", model_folder, data_file, data_file, "-o", tmp_path / "t", "--factors", tmp_path / "f")
    other = save_language_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | changed))
    (name,) = changed
    for words in (
        ("query", tmp_path / "s", "--text", "a cat", "--model", other),
        ("score", tmp_path / "s", data_file, "-o", tmp_path / "u", "--model", other),
        ("build", other, data_file, "-o", tmp_path / "s", "--method", "logra", "--rank", "4"),
        ("attribute", other, data_file, data_file, "-o", tmp_path / "v", "--factors", tmp_path / "f"),
    ):
        err = run(*words, status=2)
        assert "computes something else" in err.splitlines()[-1], words
    err = run("attribute", other, data_file, data_file, "-o", tmp_path / "t", status=2)
    assert "a table in" in err and "made with other settings (structure)" in err
    run("query", tmp_path / "s", "--text", "a cat", "--model", save_language_model(tmp_path / "same"))


def without_record(folder):
    """A store as versions before made it."""
    store = open_store(folder)
    blueprint = replace(store.blueprint, structure=None)
    write_json(folder / "blueprint.json", blueprint.to_json())
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][PROBE_FILE]
    (folder / PROBE_FILE).unlink()
    write_json(folder / "manifest.json", manifest | {"blueprint": blueprint.digest()})


def test_earlier_stores_are_asked_with_a_note(tmp_path):
    whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    without_record(tmp_path / "s")
    assert "structure" not in Blueprint.read(tmp_path / "s").to_json()
    found = whence.query(tmp_path / "s", task_of(), records(2), runtime=QUIET)
    assert "before it was recorded what the model computes: only weights and data were compared" in "; ".join(found.notes)
    whence.build(
        task_of(), records(4, 20), tmp_path / "s", append=True, config=whence.BuildConfig(method="logra"), runtime=QUIET
    )
    assert len(open_store(tmp_path / "s")) == 18


def test_a_row_of_an_earlier_store_is_made_again_from_its_text(tmp_path, run, model_folder, data_file):
    for method in ("aligned", "lorif"):
        folder = tmp_path / method
        run("build", model_folder, data_file, "-o", folder, "--method", method)
        without_record(folder)
        assert "a row made again from its text" in " ".join(
            json.loads(run("query", folder, "--text", "a cat", "--json"))["notes"]
        )
        other = save_language_model(tmp_path / f"other-{method}")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.1}))
        assert "a stored row of 't0' that is" in run("query", folder, "--text", "a cat", "--model", other, status=2)


def test_rows_that_are_not_those_of_the_model_are_refused(tmp_path):
    """As a projection made in another way would give them."""
    whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(method="logra", rank=3), runtime=QUIET)
    whence.build(task_of(), records(), tmp_path / "t", config=whence.BuildConfig(method="logra", rank=3, seed=1), runtime=QUIET)
    store, other = open_store(tmp_path / "s"), open_store(tmp_path / "t")
    with refused("a stored row of '0' that is .* of its length from the gradient made again"):
        whence.query(replace(store, blueprint=replace(store.blueprint, seed=1)), task_of(), records(2), runtime=QUIET)
    assert whence.query(other, task_of(), records(2), runtime=QUIET).proponents


def test_inputs_that_cannot_be_kept_are_said_to_be_missing(tmp_path):
    class Pair:
        def __init__(self, rows):
            self.rows = rows

    def make(function=torch.relu):
        torch.manual_seed(0)
        return whence.Custom(
            Net(function),
            lambda model, batch: model(batch.rows).square().sum(1),
            collate=lambda rows: Pair(torch.stack([torch.as_tensor(row) for row in rows])),
        )

    data = [record["inputs"] for record in records()]
    store = whence.build(make(), data, tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    assert PROBE_FILE not in store.files
    assert any("keeps no inputs of an example" in note for note in whence.query(store, make(), data[:2], runtime=QUIET).notes)
    changed = make()
    changed.model.norm.eps = 1e-3
    with refused("eps=1e-05 there and eps=0.001 here"):
        whence.query(store, changed, data[:2], runtime=QUIET)


def test_a_damaged_record_is_refused(tmp_path):
    store = whence.build(task_of(), records(), tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    tensors = dict(read_tensors(tmp_path / "s" / PROBE_FILE))
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    content = json.loads(bytes(tensors["about"].tolist()))
    for about in (
        b"{",
        b"[]",
        json.dumps(content | {"rows": [0]}).encode(),
        json.dumps(content | {"inputs": [{}, {}]}).encode(),
    ):
        write_tensors(tmp_path / "s" / PROBE_FILE, tensors | {"about": torch.tensor(list(about), dtype=torch.uint8)})
        manifest["files"][PROBE_FILE] = sha256_of(tmp_path / "s" / PROBE_FILE)
        write_json(tmp_path / "s" / "manifest.json", manifest)
        with pytest.raises(StoreCorrupt, match="an unreadable probe.safetensors"):
            whence.query(tmp_path / "s", task_of(), records(2), runtime=QUIET)
    assert store.blueprint.structure is not None
    with pytest.raises(StoreCorrupt, match="an unreadable record of what a model computes"):
        ModelRecord.from_json({"structure": {"modules": [1]}, "probe": None})


# Factors, runs, logs, tables


@pytest.mark.parametrize("method", ["ekfac", "kfac", "datainf"])
def test_kept_factors_refuse_another_function(tmp_path, method):
    def scores(task, **options):
        return whence.attribute(task, records(), records(2), **keywords_of(method=method, factors=tmp_path / "f", **options))

    first = scores(task_of())
    assert torch.equal(scores(task_of()).scores, first.scores)
    with refused("a curvature fit in .* of a model with these weights that computes something else"):
        scores(task_of(Net, torch.tanh))
    with refused("eps=1e-05 there and eps=1.1e-05 here"):
        scores(task_of(Net, eps=1.1e-5))
    record = json.loads((tmp_path / "f" / "fit.json").read_text())
    del record["identity"]["model"]
    write_json(tmp_path / "f" / "fit.json", record)
    assert any("made before it was recorded what the model computes" in note for note in scores(task_of()).notes)


def test_a_store_of_aligned_refuses_the_factors_of_another_function(tmp_path):
    whence.attribute(task_of(), records(), records(2), method=whence.EKFAC(factors=tmp_path / "f"), runtime=QUIET)
    with refused("a curvature fit"):
        whence.build(
            task_of(Net, torch.tanh),
            records(),
            tmp_path / "s",
            config=whence.BuildConfig(factors=tmp_path / "f"),
            runtime=QUIET,
        )


def trained(folder, task, *, steps=4):
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    dataset = task.prepare(records())
    with whence.Recorder(folder, task.model, optimizer, every=2) as run:
        for step in range(steps):
            chosen = dataset.examples[step * 3 : step * 3 + 3]
            run.batch([example.id for example in chosen])
            task.loss(task.model, task.collate(chosen)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return task


@pytest.mark.parametrize("method", ["source", "tracin", "unroll"])
def test_a_recorded_run_refuses_another_model(tmp_path, method):
    task = trained(tmp_path / "r", task_of())
    whence.attribute(task, records(), records(2), method=settings_of(method=method, run=tmp_path / "r"), runtime=QUIET)
    task.model.norm.eps = 1e-3
    with refused("a run in .* of a model with these weights that computes something else: 'norm'"):
        whence.attribute(task, records(), records(2), method=settings_of(method=method, run=tmp_path / "r"), runtime=QUIET)
    task.model.norm.eps = 1e-5
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    del record["seal"]
    del record["structure"]
    write_json(tmp_path / "r" / "run.json", record)
    found = whence.attribute(task, records(), records(2), method=settings_of(method=method, run=tmp_path / "r"), runtime=QUIET)
    assert any("recorded before it was kept what its model computes" in note for note in found.notes)


def test_a_stopped_run_and_a_stopped_log_refuse_another_model(tmp_path):
    task = task_of()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), whence.Recorder(tmp_path / "r", task.model, optimizer, every=1) as run:
        run.batch(["0"])
        task.loss(task.model, task.collate(task.prepare(records(1)).examples)).sum().backward()
        optimizer.step()
        raise KeyboardInterrupt
    task.model.norm.eps = 1e-3
    with refused("a run in"), whence.Recorder(tmp_path / "r", task.model, optimizer, every=1):
        pass
    task = task_of()
    log = whence.pipeline.GradientLog(tmp_path / "l", task, records(), quiet=True)
    log._lock.close()
    with refused("a log in"):
        whence.pipeline.GradientLog(tmp_path / "l", task_of(Net, eps=1e-3), records(), quiet=True)
    assert whence.pipeline.GradientLog(tmp_path / "l", task_of(), records(), quiet=True)


def test_a_gradient_log_knows_the_model_it_ended_with(tmp_path):
    task = task_of()
    log = whence.pipeline.GradientLog(tmp_path / "l", task, records(), quiet=True)
    dataset = task.prepare(records())
    with log.batch(dataset.ids):
        task.loss(task.model, task.collate(dataset.examples)).mean().backward()
    store = log.finish()
    assert whence.query(store, task_of(), records(2), runtime=QUIET).proponents
    with refused():
        whence.query(store, task_of(Net, torch.tanh), records(2), runtime=QUIET)


def test_an_ensemble_refuses_another_model_under_a_members_name(tmp_path):
    table = whence.attribute(task_of(), records(), records(2), method="grad-dot-exact", runtime=QUIET)
    ensemble = whence.score.Ensemble(tmp_path / "e")
    ensemble.add(table, member="0", structure=structure_of(task_of().model))
    ensemble.check_structure("0", structure_of(task_of(Net, torch.tanh).model))  # nothing that structure shows
    with pytest.raises(BadInput, match="a model with the weights of a member of .* eps=1e-05 there and eps=0.001 here"):
        ensemble.check_structure("0", structure_of(task_of(Net, eps=1e-3).model))


# What it costs, and what it forgives


def test_weights_are_digested_once_in_a_verb(tmp_path, run, monkeypatch, model_folder, data_file):
    passes = []
    digest = base._digest
    monkeypatch.setattr(base, "_digest", lambda model: passes.append(model) or digest(model))
    store = tmp_path / "s"
    for words in (
        ("build", model_folder, data_file, "-o", store, "--method", "logra", "--rank", "4"),
        ("query", store, "--text", "a cat"),
        ("score", store, data_file, "-o", tmp_path / "t"),
        ("score", store, data_file, "-o", tmp_path / "u", "--ensemble", tmp_path / "e"),
        ("attribute", model_folder, data_file, data_file, "-o", tmp_path / "v", "--factors", tmp_path / "f"),
    ):
        passes.clear()
        run(*words)
        assert len(passes) == 1, words


def test_weights_that_change_are_digested_again():
    task = task_of()
    with digested_once():
        before = task.weights
        with digested_once():
            assert task.weights == before
        bias = task.model.last.bias.data.clone()
        with torch.no_grad():
            task.model.last.bias += 1
        changed = task.weights
        assert changed != before
        task.model.last.bias.data = bias
        assert task.weights == before


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_rounding_of_another_place_is_forgiven_and_no_more(dtype):
    task = task_of()
    examples = task.prepare(records()).examples
    here = ModelRecord.of(task, plan_units(task), examples)
    assert here.probe is not None
    for share, is_same in ((1e-7 if dtype == "float64" else 1e-4, True), (0.5, False)):
        value, *others = here.probe.values
        moved = replace(here.probe, values=(value * (1 + share), *others), dtype=dtype, place="cuda, torch 2.9")
        assert (moved.differs(replace(here.probe, dtype=dtype)) == "") == is_same, (dtype, share)

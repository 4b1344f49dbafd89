"""The bench's settings, and its table on a bank of a few runs."""

import json
from dataclasses import replace

import pytest
import torch

from whence.bench import (
    DIFFUSION_ENTRIES,
    ENTRIES,
    MEDIUM_ENTRIES,
    SETTINGS,
    Setting,
    load_setting,
    own_entry,
    prepare,
    run_setting,
    write_leaderboard,
)
from whence.bench.data import tuning_documents
from whence.bench.denoiser import DenoiserLosses, DenoiserRetrain, DenoiserSettings, denoising, new_denoiser
from whence.bench.entries import _of_images, entries_of
from whence.bench.language import Language, pretrained
from whence.bench.settings import language_setting
from whence.bench.small import SmallSettings, new_network
from whence.data import Dataset
from whence.demo.model import Settings, new_model, train_tokenizer
from whence.demo.train import Retrain
from whence.errors import BadInput, StoreCorrupt, UnknownOption
from whence.evaluate import evaluate, save_table
from whence.records import ScoreTable
from whence.score import mean_table, random_scores
from whence.store import read_tensors
from whence.tasks import CausalLM, Draws

pytest.importorskip("sklearn")


def small(folder):
    return replace(prepare("table", folder), subsets=4, seeds=2)


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name not in ("text", "text-long", "text-medium", "text-labels", "digits-diffusion")]
)
def test_a_setting_trains_on_what_is_kept_and_nothing_else(name, tmp_path):
    setting = prepare(name, tmp_path)
    settings = replace(setting.retrain.settings, epochs=1)
    retrain = replace(setting.retrain, settings=settings)
    keep = torch.ones(len(setting.train), dtype=torch.bool)
    keep[::3] = False
    model = retrain(keep, 0)
    spoiled = replace(retrain, inputs_ND=torch.where(keep[:, None], retrain.inputs_ND, 1e9))
    for a, b in zip(model.parameters(), spoiled(keep, 0).parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(setting.measure(model), setting.measure(retrain(keep, 1)))
    assert setting.measure(model).shape == (len(setting.queries),)
    assert len({example.id for example in (*setting.train.examples, *setting.queries.examples)}) == len(keep) + len(
        setting.queries
    )


def test_the_task_measures_what_the_bank_measures(tmp_path):
    setting = small(tmp_path)
    task = setting.task
    batch = task.collate(setting.queries.examples)
    with torch.no_grad():
        torch.testing.assert_close(-task.measurement(task.model, batch), setting.measure(task.model))
    again = load_setting(tmp_path / "table")
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), again.task.model.parameters(), strict=True))
    assert again.train.fingerprint == setting.train.fingerprint and again.task.recipe == task.recipe


def test_the_recipe_adds_up_the_learning_rate():
    settings = SmallSettings(epochs=2, batch_examples=10, learning_rate=0.1)
    assert len(settings.rates(25)) == 6
    assert settings.recipe(25).learning_rate_sum == pytest.approx(0.1 * 3.5)  # a cosine's mean is a half, plus its first step


@pytest.mark.parametrize("network", ["mlp", "cnn", "table"])
def test_networks_depend_on_their_seed_only(network):
    state = torch.random.get_rng_state()
    first, same, other = (new_network(network, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_bench_ranks_and_a_second_run_makes_nothing_twice(tmp_path):
    setting = small(tmp_path)
    chosen = [entry for entry in ENTRIES if entry.name in ("random", "bm25", "loss", "ekfac", "logra-rank16")]
    found = run_setting(setting, entries=chosen, removal=("ekfac",), quiet=True)
    names = [row.method for row in found.evaluation.rows]
    assert {"random (seed 0)", "loss", "ekfac, default damping", "ekfac, default damping, 5 models"} <= set(names)
    assert not any("bm25" in name for name in names)  # a table of numbers has no words
    assert set(found.tuned) == {"ekfac, default damping", "logra rank 16, default damping"}
    assert found.tuning is not None and len(found.tuning.query_ids) < len(setting.queries)
    assert [curve.method for curve in found.curves] == ["ekfac, default damping"] and not found.brittleness
    json.dumps(found.to_dict(), allow_nan=False)
    moments = {path: path.stat().st_mtime_ns for path in (tmp_path / "table" / "tables").rglob("*.npy")}
    extra = tmp_path / "extra"
    save_table(replace(random_scores(setting.train, setting.queries, seed=1), method="another system"), extra / "one")
    again = run_setting(setting, entries=chosen, extra=extra, removal=(), quiet=True)
    assert {row.method for row in again.evaluation.rows} == {*names, "another system"}
    assert moments == {path: path.stat().st_mtime_ns for path in (tmp_path / "table" / "tables").rglob("*.npy")}


OWN = """
import torch

def nearest(task, train, queries):
    rows = [torch.stack([torch.as_tensor(e.fields["inputs"]) for e in part.examples]).double() for part in (queries, train)]
    return -torch.cdist(*rows)

def odd(task, train, queries):
    return torch.zeros(2, 2)

def broken(task, train, queries):
    return torch.full((len(queries), len(train)), float("nan"))

def nothing(task, train, queries):
    return None
"""


def test_a_method_of_ones_own_stands_beside_controls_and_what_is_there(tmp_path):
    setting = small(tmp_path)
    before = [entry for entry in ENTRIES if entry.name in ("ekfac", "grad-dot-exact")]
    run_setting(setting, entries=before[:1], removal=(), quiet=True)
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    found = run_setting(setting, entries=before, own=[own_entry(f"{path}:nearest")], quiet=True)
    scores = {row.method: row.lds.interval.mean for row in found.evaluation.rows}
    assert set(found.controls) > {"mine.py:nearest, scores of another query", "gradient norm", "random (seed 0)", "loss"}
    # Of the listed methods the one whose table was there; no other is made, nor its other dampings or models.
    assert set(scores) == {*found.controls, "mine.py:nearest", "grad-dot-exact"}
    assert not found.curves and found.mislabels is None
    train, queries = (
        torch.stack([torch.as_tensor(example.fields["inputs"]) for example in part.examples]).double()
        for part in (setting.train, setting.queries)
    )
    nearest = ScoreTable(-torch.cdist(queries, train), setting.queries.ids, setting.train.ids, "", "nearest")
    by_hand = evaluate([nearest], setting.bank(quiet=True)).rows[0].lds.interval.mean
    assert scores["mine.py:nearest"] == pytest.approx(by_hand)

    work = len(list((tmp_path / "table" / "tables").iterdir()))
    run_setting(setting, entries=before, own=[own_entry(f"{path}:nearest")], quiet=True)
    assert len(list((tmp_path / "table" / "tables").iterdir())) == work
    path.write_text(OWN.replace("-torch", "torch"))  # a changed file is another method
    turned = run_setting(setting, entries=before, own=[own_entry(f"{path}:nearest")], quiet=True)
    assert {row.method: row.lds.interval.mean for row in turned.evaluation.rows}["mine.py:nearest"] == pytest.approx(
        -scores["mine.py:nearest"]
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("odd", r"scores of shape \(2, 2\) from mine.py:odd"),
        ("broken", "not all of them finite"),
        ("nothing", "a NoneType from mine.py:nothing"),
        ("absent", "no function 'absent'"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(name, told, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    with pytest.raises(BadInput, match=told):
        own_entry(f"{path}:{name}").make(small(tmp_path), None, tmp_path)


def test_one_page_of_all_settings(tmp_path):
    def row(method, lds, share, ceiling=0.8):
        return {
            "method": method, "lds": {"mean": lds, "low": lds - 0.1, "high": lds + 0.1}, "share_of_ceiling": share,
            "ceiling": ceiling, "bytes_per_example": None, "seconds": 1.5,
        }  # fmt: skip

    pages = {
        "first": [row("one <b>", 0.6, 0.75), row("two", 0.4, 0.5), row("loss", 0.0, 0.0)],
        "second": [row("two", 0.8, 1.0), row("one <b>", 0.2, 0.25), row("alone", 0.1, None, None)],
    }
    for name, rows in pages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"evaluation": {"rows": rows}, "controls": ["loss"]}))
    page = write_leaderboard(tmp_path).read_text()
    first = page[page.index("All settings</h2>") : page.index("first</h2>")]
    assert "one &lt;b&gt;" in page and "one <b>" not in page and "loss (control)" in page and "noise ceiling" in page
    assert first.index(">two<") < first.index("one &lt;b&gt;") and ">75%<" in first and ">50%<" in first
    assert "alone" not in first and "alone" in page
    (tmp_path / "second" / "results.json").write_text(json.dumps({"evaluation": {"rows": [{"method": 3}]}}))
    with pytest.raises(StoreCorrupt, match="no result of a bench"):
        write_leaderboard(tmp_path)


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(UnknownOption, match="one of: digits-mlp"):
        prepare("mnist", tmp_path)


def test_an_ensemble_is_the_mean_and_remembers_what_went_in():
    def member(value, **facts):
        return ScoreTable(torch.full((1, 2), value), ("q",), ("a", "b"), "nats", "m", **facts)

    found = mean_table([member(1.0, bytes_per_example=4, seconds=1.0, tuned_on=("q",)), member(3.0, bytes_per_example=4)])
    assert found.scores.tolist() == [[2.0, 2.0]] and found.method == "m, 2 models"
    assert found.bytes_per_example == 8 and found.seconds is None and found.tuned_on == ("q",)
    with pytest.raises(BadInput, match="not all with the same ids"):
        mean_table([member(1.0), replace(member(1.0), train_ids=("b", "a"))])


def small_diffusion(tmp_path, count=8):
    settings = DenoiserSettings(width=8, noise_steps=10, epochs=2)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
    plain = denoising(new_denoiser(settings, 0), settings)
    train = plain.prepare([{"id": f"t{n}", "image": image} for n, image in enumerate(images)])
    queries = plain.prepare([{"id": f"q{n}", "image": image} for n, image in enumerate(images[:3].flip(2))])
    retrain = DenoiserRetrain(images, settings)
    return Setting(
        "digits-diffusion", train, queries, lambda model, recipe: denoising(model, settings, noised=Draws(draws=4), recipe=recipe),
        lambda seed: (retrain(torch.ones(count, dtype=torch.bool), seed), settings.recipe(count)),
        lambda: new_denoiser(settings, 0), retrain, DenoiserLosses(queries, settings, draws=4), 4, 2, tmp_path,
    )  # fmt: skip


def test_a_denoiser_trains_on_what_is_kept_and_nothing_else(tmp_path):
    setting = small_diffusion(tmp_path)
    keep = torch.tensor([True, False] * 4)
    model = setting.retrain(keep, 0)
    spoiled = replace(setting.retrain, images=torch.where(keep[:, None, None, None], setting.retrain.images, 1e9))
    for a, b in zip(model.parameters(), spoiled(keep, 0).parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(setting.measure(model), setting.measure(setting.retrain(keep, 1)))
    assert setting.measure(model).shape == (3,)
    assert setting.retrain.fingerprint != replace(setting.retrain, settings=DenoiserSettings()).fingerprint
    assert setting.measure.fingerprint != replace(setting.measure, draws=5).fingerprint
    task = denoising(model, setting.retrain.settings, noised=Draws(draws=4, seed=1))
    with torch.no_grad():
        torch.testing.assert_close(setting.measure(model), task.loss(task.model, task.collate(setting.queries.examples)))


def test_rows_of_the_diffusion_bench_have_names_of_their_own(tmp_path):
    """On a bank of eight runs: baselines and variants, each under a name of its own."""
    setting = small_diffusion(tmp_path)
    chosen = [
        entry for entry in DIFFUSION_ENTRIES if entry.name in ("random", "pixels", "grad-dot", "d-trak", "ekfac-empirical")
    ]
    chosen = [replace(entry, has_damping=False, is_ensembled=False) for entry in chosen]
    found = run_setting(setting, entries=chosen, removal=(), quiet=True)
    names = [row.method for row in found.evaluation.rows]
    assert len(set(names)) == len(chosen) == len(names)
    assert any(name.startswith("d-trak; trak") for name in names) and any("empirical" in name for name in names)
    assert found.curves == found.brittleness == [] and found.mislabels is None


def test_a_method_of_images_that_is_not_there_is_refused():
    """It was run as plain gradients under the unknown name."""
    with pytest.raises(UnknownOption, match="unknown method 'ekfak'"):
        _of_images("ekfac", "ekfak")


TINY = Settings(vocabulary=300, context=16, width=16, layers=1, heads=2, epochs=1, batch_examples=2)


def tiny_tuned(tmp_path):
    first, second = ([{"text": f"{word} {n} is a {word}", "id": f"{word}{n}"} for n in range(20)] for word in ("cat", "dog"))
    tokenizer = train_tokenizer((record["text"] for record in first + second), TINY)
    examples = CausalLM(new_model(len(tokenizer), 0, TINY), tokenizer).prepare(second).examples
    start = pretrained(tmp_path / "models", first, tokenizer, TINY)
    language = Language(TINY, tokenizer, Dataset(examples[:16]), Dataset(examples[16:]), start)
    return language_setting("text-medium", tmp_path, language, 4), first, tokenizer


def test_fine_tuning_starts_from_weights_that_are_made_once(tmp_path):
    setting, first, tokenizer = tiny_tuned(tmp_path)
    start = setting.retrain.start
    made = start.stat().st_mtime_ns
    assert pretrained(tmp_path / "models", first, tokenizer, TINY) == start and start.stat().st_mtime_ns == made
    assert pretrained(tmp_path / "models", first[1:], tokenizer, TINY) != start
    still = replace(setting.retrain, settings=replace(TINY, learning_rate=0.0))
    keep = torch.arange(16) % 2 == 0
    # Whatever the seed, without steps they are what is left.
    for name, tensor in still(keep, 3).named_parameters():
        assert torch.equal(tensor, read_tensors(start)[name])
    tuned, other = setting.retrain(keep, 3), setting.retrain(keep, 4)
    assert not torch.equal(setting.measure(tuned), setting.measure(other))
    assert torch.equal(setting.measure(tuned), setting.measure(setting.retrain(keep, 3)))
    scratch = replace(setting.retrain, start=None)
    assert scratch.fingerprint != setting.retrain.fingerprint
    assert scratch.fingerprint == Retrain(setting.train, len(tokenizer), TINY).fingerprint


def test_the_medium_bench_has_its_rows_and_controls(tmp_path):
    setting, _, _ = tiny_tuned(tmp_path)
    assert entries_of(setting) == MEDIUM_ENTRIES
    chosen = [entry for entry in MEDIUM_ENTRIES if entry.name in ("ekfac", "gradient-norm", "ekfac-axes")]
    found = run_setting(setting, entries=chosen, quiet=True)
    rows = {row.method: row for row in found.evaluation.rows}
    assert {"ekfac, default damping", "ekfac, default damping, scores of another query", "gradient norm"} <= set(rows) and len(
        rows
    ) == 4
    assert not found.tuned and found.tuning is None


def test_a_table_from_the_halves_that_are_there(tmp_path):
    """Makes nothing, neither tables nor halves, and says how many halves there are."""
    setting = small(tmp_path)
    with pytest.raises(BadInput, match="0 of 4 subsets retrained"):
        setting.bank(only_finished=True)
    chosen = [entry for entry in ENTRIES if entry.name in ("random", "loss")]
    run_setting(replace(setting, subsets=3), entries=chosen[:1], quiet=True)
    found = run_setting(setting, entries=chosen, only_finished=True, quiet=True)
    assert found.evaluation.summary().startswith("3 subsets with 50% of 342 examples, 2 seeds each")
    assert [row.method for row in found.evaluation.rows] == ["random (seed 0)"]


def test_some_halves_with_a_second_seed_give_the_ceiling(tmp_path):
    setting = replace(small(tmp_path), seeds=1, repeated=3)
    replace(setting, repeated=0).bank(quiet=True)
    assert setting.bank(only_finished=True).repeated is None
    assert setting.bank(quiet=True).repeated.seeds == (1000, 2000)
    random = [entry for entry in ENTRIES if entry.name == "random"]
    summary = run_setting(setting, entries=random, quiet=True).evaluation.summary()
    assert "1 seed each" in summary and "on 3 subsets that were retrained twice" in summary


def test_passages_to_fine_tune_on_are_of_other_modules():
    first, second = tuning_documents()
    modules = [{record["source"].split(".")[0] for record in part} for part in (first, second)]
    assert not modules[0] & modules[1] and "os" in modules[1] and "json" in modules[0]
    assert len({record["id"] for record in first + second}) == len(first + second)
    assert not {record["text"] for record in first} & {record["text"] for record in second}

"""The bench's settings, and its table on a bank of a few runs."""

import json
from dataclasses import replace

import pytest
import torch

from whence.bench import DIFFUSION_ENTRIES, ENTRIES, SETTINGS, Setting, load_setting, prepare, run_setting
from whence.bench.denoiser import DenoiserLosses, DenoiserRetrain, DenoiserSettings, denoising, new_denoiser
from whence.bench.small import SmallSettings, new_network
from whence.errors import BadInput, UnknownOption
from whence.evaluate import save_table
from whence.records import ScoreTable
from whence.score import mean_table, random_scores
from whence.tasks import Draws

pytest.importorskip("sklearn")


def small(folder):
    return replace(prepare("table", folder), subsets=4, seeds=2)


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name not in ("text", "text-long", "text-labels", "digits-diffusion")]
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

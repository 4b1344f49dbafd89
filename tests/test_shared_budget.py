"""What rows share is kept in proportion to them: sizes by a rule, cut bases in little room on disk, and what was given up told."""

from typing import Any

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from whence.cli import main
from whence.compress import Kronecker, Whitened
from whence.curvature import kept_numbers, load_whitened, save_whitened
from whence.data import Dataset
from whence.errors import DiskFull, OutOfMemory
from whence.pipeline import forecast_build
from whence.pipeline.forecast.hardware import ModelShape
from whence.pipeline.stored import shared_budget
from whence.pipeline.stored.code_size import code_size
from whence.pipeline.stored.shared_budget import budget_note, default_budget, within_budget
from whence.records import Unit
from whence.reflections import Blocked, Reflected
from whence.settings import BuildConfig, FitConfig
from whence.store import open_store, verify_store

UNITS = ModelShape(layers=2, hidden=2048, intermediate=5632, key_values=2048, vocabulary=512).units()
WHOLE = FitConfig(largest_side=10**6, directions=1024)


@pytest.mark.parametrize("examples", [48, 10_000, 10**6, 10**9])
def test_shared_files_stay_in_proportion_to_the_rows(examples):
    config = BuildConfig()
    fit, size = within_budget(UNITS, examples, config, WHOLE)
    parameters = sum(unit.outputs * unit.inputs for unit in UNITS)
    assert size.shared_bytes <= default_budget(UNITS, examples * size.row_bytes) * 1.01
    assert default_budget(UNITS, 1000) == 1000 + max(320 << 20, parameters)
    note = budget_note(UNITS, config, fit, size)
    if examples < 10**9:
        assert (fit.directions or 0) < 1024 and size.shared_bytes < code_size(UNITS, examples, config, WHOLE).shared_bytes / 3
        assert (
            f"sides above {fit.largest_side:,} have {fit.directions:,} directions" in note
            and "MiB at least, by default" in note
        )
    else:
        assert fit == WHOLE and "directions" not in note
    widest = max(choice.width for choice in size.choices)
    assert widest == min(examples, 1024)  # axes are not given up for it


def test_what_is_asked_for_is_the_budget_and_a_disk_bounds_it():
    fit, size = within_budget(UNITS, 48, BuildConfig(shared_bytes="4096m"), WHOLE)
    assert fit == WHOLE and "directions" not in budget_note(UNITS, BuildConfig(shared_bytes="4096m"), fit, size)
    small, size = within_budget(UNITS, 48, BuildConfig(shared_bytes="64m"), WHOLE)
    assert size.shared_bytes <= 64 << 20 and 4 * kept_numbers(UNITS, small) <= 32 << 20
    assert "as asked" in budget_note(UNITS, BuildConfig(shared_bytes="64m"), small, size)
    assert within_budget(UNITS, 48, BuildConfig(), WHOLE, free_bytes=200 << 20)[1].shared_bytes <= 100 << 20
    # A fit that is there keeps its bases.
    assert within_budget(UNITS, 48, BuildConfig(), WHOLE, is_begun=True)[0] == WHOLE
    assert within_budget(UNITS, 48, BuildConfig(factors="fit"), WHOLE)[0] == WHOLE


@pytest.mark.parametrize("parameters", [400_000, 4_000_000, 10**8, 10**9])
@pytest.mark.parametrize("shared", ["8m", "64m", "256m", "1g"])
def test_coordinates_give_way_before_axes_do(parameters, shared):
    """As many axes as a row has bits for, as long as a sixteenth of the coordinates is left, or 65 thousand, or a million."""
    units = tuple(Unit(f"w{number}", 500, parameters // 5000, (f"w{number}",)) for number in range(10))
    config = BuildConfig(bytes_per_example="8k", shared_bytes=shared)
    fit, size = within_budget(units, 2000, config, FitConfig(largest_side=1, directions=1))
    widest, least = max(choice.width for choice in size.choices), max(1 << 16, min(1 << 20, parameters // 16))
    assert size.shared_bytes <= 1.05 * int(config.shared_bytes)
    if widest < 0.95 * min(size.samples, 2000):
        assert size.coordinates <= 1.3 * least or widest <= 1024 * 1.3
    if size.coordinates < 0.7 * min(least, parameters):
        assert widest <= 1024 * 1.3  # coordinates come in squares


@pytest.mark.parametrize("how", [{"is_begun": True}, {"config": BuildConfig(factors="fit", bytes_per_example=512)}])
def test_bases_that_are_kept_leave_room_for_axes(how):
    """Those of a fit in a folder of its own may be larger than the whole default budget: a code of one coordinate is none."""
    config = how.pop("config", BuildConfig(bytes_per_example=512))
    fit, size = within_budget(UNITS, 2000, config, WHOLE, **how)
    bases, budget = 4 * kept_numbers(UNITS, WHOLE), default_budget(UNITS, 2000 * 512)
    assert fit == WHOLE and bases > budget
    cut = within_budget(UNITS, 2000, BuildConfig(bytes_per_example=512), WHOLE)[1]
    assert size.coordinates > cut.coordinates / 2 > 100_000
    assert max(choice.width for choice in size.choices) > 1000
    assert size.shared_bytes < 1.05 * (bases + budget / 2)


def test_weights_of_cut_bases_are_kept_once_for_all_of_the_rest():
    torch.manual_seed(0)
    unit = Unit("w", 7, 9, ("w",))
    left = Blocked(torch.linalg.qr(torch.randn(3, 3))[0], torch.tensor([5, 0, 2]), torch.tensor([-1, 0, -1, 1, 1, -1, 0]))
    right = Reflected.towards(torch.linalg.qr(torch.randn(9, 2))[0])
    for outputs, inputs, shape in ((left, right, (5, 3)), (None, right, (7, 3)), (left, None, (5, 9)), (None, None, (7, 9))):
        values_OI = torch.rand(7, 9)
        if outputs is not None:
            outputs.even(values_OI)
        if inputs is not None:
            inputs.even(values_OI.T)
        whitened = Whitened(Kronecker((unit,), (outputs,), (inputs,)), (values_OI,), (None,))
        tensors = save_whitened(whitened)
        assert tensors["weights.0"].shape == shape
        again = load_whitened((unit,), tensors, torch.device("cpu"))
        assert torch.equal(again.weights[0], values_OI)
        # As stores of before have them.
        whole = load_whitened((unit,), {**tensors, "weights.0": values_OI}, torch.device("cpu"))
        assert torch.equal(whole.weights[0], values_OI)


def test_a_store_with_little_room_has_cut_bases_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared_budget, "_LEAST_BYTES", 8000)
    monkeypatch.setattr(shared_budget, "_DIRECTIONS", (4, 2))
    task, train = zoo.make("gpt2", count=16)
    train = Dataset(train.examples)
    store = whence.build(task, train, tmp_path, config=whence.BuildConfig(method="aligned", batch_positions=64))
    said = capsys.readouterr().err
    assert "by default; shared_bytes asks for another size): sides above 2 have 2 directions; codes are made of" in said
    assert "bases are cut at" in store.blueprint.task["bases"] and "coordinates" in store.blueprint.task["bases"]
    assert verify_store(open_store(tmp_path)) == []
    assert "shared files take about" in str(forecast_build(task, train, BuildConfig(batch_positions=64)))
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "codes are made of" in printed and "shared by all of them" in printed
    scores = whence.score_table(store, task, train, runtime=QUIET).scores
    exact = whence.attribute(
        task,
        train,
        train,
        method=whence.EKFAC(fit=whence.FitConfig(largest_side=2, directions=2)),
        runtime=whence.Runtime(quiet=True, batch_positions=64),
    ).scores
    assert torch.corrcoef(torch.stack([scores.flatten(), exact.flatten()]))[0, 1] > 0.8  # of a few coordinates


def test_a_limit_below_the_least_size_is_not_said_to_be_kept(tmp_path, capsys):
    task, train = zoo.make("gpt2", count=16)
    whence.build(
        task,
        Dataset(train.examples),
        tmp_path,
        config=whence.BuildConfig(method="aligned", shared_bytes=1, batch_positions=64),
    )
    assert "29 KiB (the nearest to the 0 KiB that were asked for; shared_bytes" in capsys.readouterr().err


def test_refusals_of_a_build_name_options_that_fit(tmp_path, monkeypatch):
    task, train = zoo.make("gpt2", count=16)
    options: dict[str, Any] = {"method": "aligned", "batch_positions": 64}
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 40_000}))
    monkeypatch.setattr(shared_budget, "_LITTLE_BYTES", 1)
    with pytest.raises(DiskFull, match="needed .* for 16 rows; do this: .*; what would fit: ") as refusal:
        whence.build(
            task, train, tmp_path / "disk", config=whence.BuildConfig(shared_bytes=100_000, rank=8, **options), runtime=QUIET
        )
    name, value = str(refusal.value).split("what would fit: ")[1].split(" or ")[-1].split("=")
    whence.build(
        task,
        train,
        tmp_path / "again",
        config=whence.BuildConfig(**{"shared_bytes": 100_000, "rank": 8, name: int(value)}, **options),
        runtime=QUIET,
    )
    monkeypatch.undo()
    monkeypatch.setattr("whence.pipeline.stored.learn_code.available_bytes", lambda device: 60_000)
    with pytest.raises(OutOfMemory, match=r"learned from; do this: .*; what would fit: axes_examples=\d+"):
        whence.build(task, train, tmp_path / "memory", config=whence.BuildConfig(**options), runtime=QUIET)

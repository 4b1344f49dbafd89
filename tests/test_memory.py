"""Runs that are cut into parts that fit: the same numbers, stops in the middle, forecasts against what is really taken, refusals."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import whence
from tests import zoo
from tests.memory import LiveBytes
from tests.reference.reflections import written_out
from tests.settings import keywords_of, settings_of
from whence.capture import capture, plan_units
from whence.curvature import class_count, fit_ekfac, fit_kfac, unit_bytes
from whence.curvature.stages import Stages
from whence.data import Dataset
from whence.errors import BadInput, DiskFull, OutOfMemory
from whence.pipeline.exact.footprint import FitBytes, Footprint
from whence.pipeline.exact.measure import measure
from whence.settings import FitConfig
from whence.store import read_tensors

NAMES = ["linear", "layer_norm", "tied", "applied_twice", "conv2d_groups", "lone_parameter", "gpt2", "llama"]
# One batch for all, since the sums of a batch in another order differ in the last bits.
FIT = {"max_positions": 1000, "quiet": True}


def close(found, wanted, rtol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()) + 1e-20)


def case(name, queries=5, count=12):
    task, dataset = zoo.make(name, count=count)
    examples = list(dataset.examples)
    return task, Dataset(examples[queries:]), Dataset(examples[:queries])


def cut(monkeypatch, rows=10**6, group_bytes=None):
    """Make every run go over so many rows at once, and its fit over groups of so many bytes."""
    seen = []

    def measured(*args, **kwargs):
        found = measure(*args, **kwargs)
        fit = found.fit if group_bytes is None else replace(found.fit, group_bytes=group_bytes)
        seen.append(replace(found, rows_at_once=min(rows, found.rows), whole_at_once=min(rows, 2), fit=fit))
        return seen[-1]

    monkeypatch.setattr("whence.pipeline.exact.prepare.measure", measured)
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fit", [fit_kfac, fit_ekfac])
def test_a_fit_in_groups_is_the_fit_at_once(tmp_path, name, fit):
    task, train, _ = case(name)
    plan, config = plan_units(task), FitConfig(samples=2, largest_side=20, directions=4)
    wanted = fit(task, plan, train, config, **FIT)
    costs = [unit.of_stage("bases") for unit in unit_bytes(task, plan, config, class_count(task, plan, train.examples, config))]
    for place, room in (("each", 1), ("some", 2 * max(costs))):
        found = fit(task, plan, train, config, folder=tmp_path / place, room_bytes=room, **FIT)
        for one, known in zip(found.blocks, wanted.blocks, strict=True):
            # The norms of this Llama compute in float32, whatever the model.
            close(one.values_OI, known.values_OI, 1e-9 if name != "llama" else 1e-6)
            for basis, other in ((one.outputs_OO, known.outputs_OO), (one.inputs_II, known.inputs_II)):
                basis, other = written_out(basis), written_out(other)
                assert (basis is None) == (other is None)
                assert basis is None or torch.equal(basis, other)
        assert len(list((tmp_path / place).glob("bases*"))) == (len(plan.units) if place == "each" else len(parts(costs, room)))


def parts(costs, room):
    return Stages(None, {"stages": {}}).parts("bases", costs, room)


def counted(monkeypatch, stops_after=10**6):
    """Count passes by the module that makes them, and stop in the middle."""
    seen = []
    for stage in ("curvature.kfac", "curvature.ekfac", "score.exact"):

        def run(*args, stage=stage, **kwargs):
            if len(seen) == stops_after:
                raise KeyboardInterrupt
            seen.append(stage)
            return capture(*args, **kwargs)

        monkeypatch.setattr(f"whence.{stage}.capture", run)
    return seen


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("room", [1, 10**9])
def test_a_fit_in_groups_that_was_stopped_goes_on(tmp_path, monkeypatch, stop, room):
    """It has three units, one pass each for factors and eigenvalues; afterwards there may be more memory than before."""
    task, train, _ = case("layer_norm")
    plan, config = plan_units(task), FitConfig(labels="dataset")
    wanted = fit_ekfac(task, plan, train, config, **FIT)
    counted(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        fit_ekfac(task, plan, train, config, folder=tmp_path, room_bytes=1, **FIT)
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    seen = counted(monkeypatch)
    found = fit_ekfac(task, plan, train, config, folder=tmp_path, room_bytes=room, **FIT)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}.items()
    assert len(seen) == 6 - stop if room == 1 else len(seen) <= 6 - stop
    for one, known in zip(found.blocks, wanted.blocks, strict=True):
        close(one.values_OI, known.values_OI)
    seen.clear()
    fit_kfac(task, plan, train, config, folder=tmp_path, **FIT)
    assert not seen


def test_what_was_fitted_at_once_is_used_in_groups(tmp_path, monkeypatch):
    task, train, _ = case("gpt2")
    plan = plan_units(task)
    wanted = fit_kfac(task, plan, train, folder=tmp_path, **FIT)
    seen = counted(monkeypatch)
    found = fit_ekfac(task, plan, train, folder=tmp_path, room_bytes=1, **FIT)
    assert set(seen) == {"curvature.ekfac"}
    for one, known in zip(found.uncorrected().blocks, wanted.blocks, strict=True):
        close(one.values_OI, known.values_OI)


OPTIONS = {
    "ekfac": {"method": "ekfac"},
    "kfac": {"method": "kfac"},
    "plain": {"method": "grad-dot-exact"},
    "pcg": {"method": "pcg", "iterations": 3},
    "rank": {"query_rank": 2},
    "cosine": {"normalize": "cosine"},
    "relatif": {"normalize": "relatif", "tokens_of": ["7"], "per_unit": True},
    "groups": {"groups": {"a": {"0": 1.0, "3": -1.0}, "b": {"1": 0.5, "2": 0.5, "4": 2.0}, "c": {"4": 1.0}}},
}


@pytest.mark.parametrize("choice", OPTIONS)
@pytest.mark.parametrize(("name", "rows"), [("gpt2", 2), ("linear", 1)])
def test_queries_in_chunks_score_as_all_at_once(tmp_path, monkeypatch, name, choice, rows):
    task, train, queries = case(name)
    options = {"batch_positions": 1000, **OPTIONS[choice]}
    if options.get("method") != "grad-dot-exact":
        options |= {"samples": 1, "factors": tmp_path / "a"}
    wanted = whence.attribute(task, train, queries, **keywords_of(**options))
    cut(monkeypatch, rows, 1)
    seen = counted(monkeypatch)
    if "factors" in options:
        options["factors"] = tmp_path / "b"
    found = whence.attribute(task, train, queries, **keywords_of(**options))
    assert seen.count("score.exact") == -(-len(wanted.query_ids) // rows)
    close(found.scores, wanted.scores, 1e-8)
    assert (found.query_ids, found.unit, found.method) == (wanted.query_ids, wanted.unit, wanted.method)
    assert choice == "pcg" or found.notes == wanted.notes
    for known, other in ((found.parts, wanted.parts), (found.tokens, wanted.tokens)):
        assert known.keys() == other.keys()
        for key in known:
            close(known[key], other[key], 1e-8)
    assert not list(tmp_path.glob("b/rows-*"))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sweep_and_self_influence_in_parts(tmp_path, monkeypatch, rows):
    task, train, queries = case("gpt2")
    options = {"batch_positions": 1000, "samples": 1}
    wanted, own = (
        whence.pipeline.damping_sweep(task, train, queries, **keywords_of(**options)),
        whence.self_influence(task, train, **keywords_of(**options)),
    )
    cut(monkeypatch, rows, 1)
    found = whence.pipeline.damping_sweep(task, train, queries, **keywords_of(factors=tmp_path, **options))
    for value, table in wanted.tables.items():
        close(found.tables[value].scores, table.scores, 1e-8)
        assert found.tables[value].notes == table.notes
    close(
        whence.self_influence(task, train, **keywords_of(factors=tmp_path, **options)).scores,
        own.scores,
        1e-8,
    )


@pytest.mark.parametrize("again", [2, 1])
def test_chunks_that_were_stopped_go_on(tmp_path, monkeypatch, capsys, again):
    task, train, queries = case("linear", queries=6, count=12)
    options = {"batch_positions": 1000, "labels": "dataset", "factors": tmp_path, "normalize": "cosine", "quiet": False}
    wanted = whence.attribute(task, train, queries, **keywords_of(**{**options, "factors": None}))
    cut(monkeypatch, 2)
    counted(monkeypatch, 4)  # the fit takes two, the scan three
    with pytest.raises(KeyboardInterrupt):
        whence.attribute(task, train, queries, **keywords_of(**options))
    assert len(list(tmp_path.glob("rows-*/scores-*.safetensors"))) == 2
    seen = counted(monkeypatch)
    cut(monkeypatch, again)
    found = whence.attribute(task, train, queries, **keywords_of(**options))
    assert seen == ["score.exact"] * (2 // again)
    close(found.scores, wanted.scores)
    said = capsys.readouterr().err
    assert f"6 rows in {2 + 2 // again} passes over the training data, 4 rows done before" in said
    assert (f"rows 4 to 4 done, about 0 s left for the other {again}" in said) == (again == 1)
    assert not list(tmp_path.glob("rows-*"))


def test_chunks_of_another_question_are_not_used(tmp_path, monkeypatch):
    task, train, queries = case("linear", queries=6, count=12)
    options = {"batch_positions": 1000, "labels": "dataset", "factors": tmp_path}
    cut(monkeypatch, 2)
    counted(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        whence.attribute(task, train, queries, **keywords_of(**options))
    seen = counted(monkeypatch)
    for other in ({"relative_damping": 0.5}, {"query_rank": 1}, {"normalize": "relatif"}, {"per_unit": True}):
        whence.attribute(task, train, queries, **keywords_of(**options, **other))
        assert len(seen) == 3
        seen.clear()
    whence.attribute(task, train, Dataset(queries.examples[::-1]), **keywords_of(**options))
    assert len(seen) == 3
    assert len(list(tmp_path.glob("rows-*"))) == 1  # still those of the first


@pytest.fixture
def small_chunks(monkeypatch):
    """What is made at a time is small beside the model, as it is for a large one."""
    for name in ("whence.curvature.squares._CHUNK_NUMBERS", "whence.pipeline.exact.measure._SQUARES"):
        monkeypatch.setattr(name, 1 << 17)
    for name in ("whence.pipeline.exact.measure._SCAN_NUMBERS", "whence.score.contract._CHUNK_NUMBERS"):
        monkeypatch.setattr(name, 1 << 17 if "_SCAN" in name else {"cpu": 1 << 17})
    for name in ("whence.pipeline.exact.measure.DENSE_NUMBERS", "whence.score.blocks.DENSE_NUMBERS"):
        monkeypatch.setattr(name, 1 << 18)


def wide(count=40, positions=4):
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(150, 260), torch.nn.ReLU(), torch.nn.Linear(260, 260), torch.nn.Linear(260, 10))
    task = whence.Classification(zoo.Sequences(body).double())
    return task, [(torch.randn(positions, 150).double(), place % 10) for place in range(count)]


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (20, {}),
        (20, {"memory_gib": 0.02, "factors": ""}),
        (20, {"memory_gib": 0.03, "factors": "", "query_rank": 4}),
        (20, {"method": "kfac", "memory_gib": 0.02, "factors": ""}),
        (20, {"normalize": "cosine", "memory_gib": 0.03}),
        (20, {"method": "grad-dot-exact", "memory_gib": 0.02}),
    ],
)
def test_forecasts_are_near_what_is_taken(tmp_path, monkeypatch, small_chunks, queries, options):
    task, train = wide()
    seen = cut(monkeypatch)
    monkeypatch.setattr("tests.test_memory.replace", lambda found, **changes: found)
    if "factors" in options:
        options = {**options, "factors": tmp_path}
    with LiveBytes() as live:
        whence.attribute(task, train, train[:queries], **keywords_of(**options))
    assert seen[0].peak / 1.5 <= live.peak <= 1.5 * seen[0].peak
    if "memory_gib" in options:
        assert live.peak <= options["memory_gib"] * 2**30
    if "factors" in options:
        disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        assert seen[0].fit.disk == pytest.approx(disk, rel=0.05)


@pytest.mark.parametrize("name", [*NAMES, "bert", "two_inputs", "conv1d", "rms_norm"])
@pytest.mark.parametrize("largest_side", [1024, 6])
def test_bytes_of_units_are_those_of_their_tensors(tmp_path, name, largest_side):
    task, train, _ = case(name, queries=1, count=6)
    plan = plan_units(task)
    config = FitConfig(largest_side=largest_side, directions=2)
    fit_ekfac(task, plan, train, config, folder=tmp_path, **FIT)
    told = unit_bytes(task, plan, config, class_count(task, plan, train.examples, config))
    for stage in ("factors", "bases", "values"):
        tensors = read_tensors(tmp_path / f"{stage}.safetensors")
        for index, unit in enumerate(told):
            mine = [value for key, value in tensors.items() if key.split(".")[1] == str(index) and "count" not in key]
            if mine:  # a unit that the loss does not reach has no factors
                # A lookup in a table that is not shared, and vectors, are told exactly.
                assert getattr(unit, stage) == sum(8 * value.numel() for value in mine)


def test_less_memory_than_the_fit_takes_it_in_groups(tmp_path, capsys, small_chunks):
    task, train = wide()
    wanted = whence.attribute(
        task,
        train,
        train[:3],
        method=whence.EKFAC(fit=whence.FitConfig(samples=1)),
        runtime=whence.Runtime(quiet=True, batch_positions=10),
    )
    found = whence.attribute(
        task,
        train,
        train[:3],
        method=whence.EKFAC(factors=tmp_path, fit=whence.FitConfig(samples=1)),
        runtime=whence.Runtime(memory_gib=0.0075, batch_positions=10),
    )
    close(found.scores, wanted.scores, 1e-7)
    assert len(list(tmp_path.glob("bases-*"))) > 1
    said = capsys.readouterr().err
    assert "memory: about " in said and " MiB of 7.7 MiB besides the model (batch " in said and "; disk: " in said


def refused(says, kind=OutOfMemory, **options):
    task, train = wide()
    with pytest.raises(kind, match=says):
        whence.attribute(task, train, train[:20], **keywords_of(**options))


def test_what_cannot_fit_is_refused_before_the_work(tmp_path, monkeypatch, small_chunks):
    monkeypatch.setattr("whence.pipeline.exact.prepare.fit_ekfac", None)
    refused("found memory_gib=0; needed a positive number; do this: leave it out", BadInput, memory_gib=0)
    refused(r"found \S+ MiB of memory for a batch, with 0.0 MiB to be had; needed room for a forward", memory_gib=1e-6)
    refused(
        r"MiB of memory for the curvature of all units at once, with .*do this: write factors='folder' into the "
        r"method, where it is fitted a few units at a time, or a smaller largest_side",
        memory_gib=0.008,
    )
    refused(
        r"memory for the curvature of 'body.2.weight' alone, with .*needed room for one unit at a time; do this: pass a smaller largest",
        memory_gib=0.002, factors=tmp_path / "a",
    )  # fmt: skip
    refused("MiB of memory for one query, with .*needed room for one query at a time; do this: track fewer parameters",
            method="grad-dot-exact", memory_gib=0.002)  # fmt: skip
    monkeypatch.setattr("whence.pipeline.exact.measure.shutil.disk_usage", lambda path: type("", (), {"free": 1 << 20}))
    refused("MiB of factors, with 1.0 MiB free on disk; needed room in the factors folder; do this: pass another folder",
            DiskFull, factors=tmp_path / "b")  # fmt: skip
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_refusal_names_two_settings_that_fit(tmp_path, monkeypatch, small_chunks):
    task, train = wide()
    with pytest.raises(OutOfMemory) as refusal:
        whence.attribute(task, train, train[:20], runtime=whence.Runtime(quiet=True, memory_gib=0.008))
    near = re.search(r"what would fit: (.+) or (.+)$", str(refusal.value))
    assert near is not None
    monkeypatch.chdir(tmp_path)
    for text in near.groups():
        options = {name: value.strip("'") for name, value in (part.split("=") for part in text.split(" with "))}
        numbers: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in options.items()}
        whence.attribute(
            task, train, train[:20], method=settings_of(**numbers), runtime=whence.Runtime(quiet=True, memory_gib=0.008)
        )


def test_a_table_that_cannot_fit_is_refused():
    need = Footprint(
        room=10 << 20, batch=1 << 20, fit=FitBytes(at_once=1 << 20, result=1 << 20), fixed=0, whole=0, scan=0, row=1, per_row=1,
        table=9 << 20,
        rows=5, rows_at_once=1, whole_at_once=1, free_disk=0,
    )  # fmt: skip
    with pytest.raises(
        OutOfMemory,
        match="found 9.0 MiB of memory for the scores, with 8.0 MiB to be had; needed room for the table; do this: "
        "write factors='folder' into the method, where the curvature is kept, or ask fewer queries at a time",
    ):
        need.refuse()
    replace(need, table=7 << 20).refuse()

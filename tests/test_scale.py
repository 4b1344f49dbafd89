"""Forecasts from sizes alone: published figures, the bytes of a store that was built, and arithmetic by hand."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from whence.capture import plan_units
from whence.cli import main
from whence.errors import BadInput, UnknownOption
from whence.pipeline import forecast_scale
from whence.pipeline.forecast.hardware import MODEL_SHAPES, ModelShape
from whence.settings import BuildConfig, Cluster, Load

ROOT = Path(__file__).parents[1]
PROJECTIONS = ["*proj.weight"]
TINY = ModelShape(layers=1, hidden=8, intermediate=12, key_values=4, vocabulary=30)


def test_shapes_have_the_published_numbers_of_parameters():
    counts = {name: round(shape.parameters / 1e9, 2) for name, shape in MODEL_SHAPES.items()}
    assert counts["llama-1b"] == 1.24 and counts["llama-8b"] == 8.03 and counts["llama-70b"] == 70.55
    assert counts["olmo-1b"] == 1.48 and counts["olmo-7b"] == 7.3 and counts["olmo-32b"] == 32.23


def test_logra_on_a_billion_tokens_of_an_8b_model():
    """Choe et al. 2024: 3.5 TB, and 3,430 to 4,696 tokens a second on an A100, by batch size."""
    config = BuildConfig(method="logra", rank=64)
    found = forecast_scale("llama-8b", Load(examples=10**9 // 512), config, Cluster(gpu="a100"), track=PROJECTIONS)
    assert found.row_bytes == 224 * 64 * 64 * 2
    assert found.store_bytes == pytest.approx(3.5e12, rel=0.03)
    assert 3430 <= found.build_tokens_per_second <= 4696


@pytest.mark.parametrize(
    ("name", "kilobytes", "gigabytes"),
    [("olmo-1b", 28.9, 2.15), ("olmo-7b", 57.8, 12.95), ("olmo-32b", 115.6, 62.4)],
)
def test_a_bit_a_number_as_eogp_counts_them(name, kilobytes, gigabytes):
    """Heo et al. 2026: 2,048 signs and a scale a module, beside raw gradients in 16 bits; 45 x 45 numbers are the nearest square."""
    found = forecast_scale(
        name, Load(examples=1000), BuildConfig(method="logra", rank=45, dtype="int1"), Cluster(), track=PROJECTIONS
    )
    assert found.row_bytes / 1000 == pytest.approx(kilobytes, rel=0.02)
    assert 2 * found.tracked / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize(
    ("method", "width"),
    [
        *((method, {"rank": 4}) for method in ("logra", "lorif", "trak", "grass", "factgrass", "aligned")),
        ("lorif", {"side_divisor": 3}),
        ("grass", {"rank": 4, "blow_up": 9}),
        ("factgrass", {"rank": 4, "blow_up": 9}),
    ],
)
def test_bytes_are_those_of_a_store_that_was_built(tmp_path, method, width):
    task, dataset = zoo.make("llama", count=6)
    options = {"method": method, **width, "dtype": "float32"}
    store = whence.build(
        task, dataset, tmp_path / "store", config=whence.BuildConfig(rows_per_shard=3, **options), runtime=QUIET
    )
    found = forecast_scale(TINY, Load(examples=6, tokens_per_example=10), BuildConfig(**options), Cluster())
    assert [(u.outputs, u.inputs) for u in TINY.units()] == [(u.outputs, u.inputs) for u in plan_units(task).units]
    assert [unit.name for unit in TINY.units()] == [unit.name for unit in plan_units(task).units]
    assert found.row_bytes == store.codec.row_bytes() and found.store_bytes == 6 * found.row_bytes
    assert found.tracked == sum(torch.Size(p.shape).numel() for p in task.model.parameters())


def test_operations_and_times_by_hand():
    """One layer, no attention to speak of: 4 operations a weight and token, the lookup free, and LoGra's two projections."""
    cluster = Cluster(gpus=4, tflops=1e-6, utilisation=0.5, disk_gbps=1e-3)
    config = BuildConfig(method="logra", rank=2, dtype="float32")
    found = forecast_scale(
        TINY, Load(examples=10, tokens_per_example=1, queries=3, k=5), config, cluster, track=["*down_proj.weight"]
    )
    weights = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 12 + 3 * 8 + 30 * 8
    per_example = 4 * weights + 12 * 8 + (2 * (8 * 2 + 12 * 2) + 2 * 4)
    assert found.build_operations == 10 * per_example
    assert found.build_tokens_per_second == pytest.approx(0.5e6 / per_example)
    assert found.build_seconds == pytest.approx(max(10 * per_example / 0.5e6, (10 * 16 + found.text_bytes) / 1e6) / 4)
    assert found.scan_seconds == pytest.approx(max(10 * 16 / 1e6, 2 * 10 * 4 * 3 / 0.5e6) / 4)
    assert found.gather_bytes == 2 * 5 * 3 * 16 * 4 and found.fit_seconds == 0


def test_turning_into_the_bases_is_counted_by_hand():
    """One layer of 8 x 12, whole network as above: the fit has a pass with second moments, one with turned gradients, and the sample's."""
    cluster = Cluster(tflops=1e-6, utilisation=1.0)
    config = BuildConfig(method="aligned", rank=2, dtype="float32")
    found = forecast_scale(TINY, Load(examples=10, tokens_per_example=3), config, cluster, track=["*down_proj.weight"])
    network = 4 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 12 + 3 * 8 + 30 * 8) + 12 * 8 * 3
    squares, gradient = 8 * 8 + 12 * 12, 8 * 12
    row = 3 * (network + 2 * squares + 2 * gradient) + 2 * gradient * 2
    assert found.build_operations == 10 * row
    fit = 3 * (2 * network + squares + 2 * squares + 2 * gradient)
    assert found.fit_seconds == pytest.approx(10 * (fit + row) / 1e6)
    assert found.sample_seconds == pytest.approx(10 * row / 1e6)


def test_more_of_anything_never_costs_less():
    first = forecast_scale("llama-1b", Load(examples=10**6, queries=8), BuildConfig(), Cluster(gpus=2))
    more = [
        forecast_scale("llama-1b", Load(examples=10**7, queries=8), BuildConfig(), Cluster(gpus=2)),
        forecast_scale("llama-8b", Load(examples=10**6, queries=8), BuildConfig(), Cluster(gpus=2)),
        forecast_scale("llama-1b", Load(examples=10**6, queries=8), BuildConfig(), Cluster(gpus=1)),
    ]
    assert all(found.build_seconds > first.build_seconds for found in more)
    assert forecast_scale("llama-70b", Load(examples=1), BuildConfig(), Cluster()).notes and not first.notes


def test_the_command(capsys):
    assert main(["forecast", "--model-shape", "llama-8b", "--examples", "1e9", "--gpus", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 10**9 and found["row_bytes"] == 514
    assert main(["forecast", "--model-shape", "llama-70b", "--examples", "1e6", "--num-queries", "9", "--gpu", "a100"]) == 0
    out = capsys.readouterr().out
    assert "514 MB of rows (514 bytes each)" in out and "weights alone exceed the 80 GB of a a100" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "found a forecast of nothing; needed a model and its data, or --model-shape and --examples"),
        (["a", "b", "--gpus", "3"], "found --gpus without --model-shape"),
        (["--model-shape", "llama-8b"], "found --model-shape without --examples; .*do this: write such as --examples 1e9"),
        (["a", "--model-shape", "llama-8b", "--examples", "3"], "found --model-shape with a model; needed sizes alone"),
        (["--model-shape", "llama-8b", "--examples", "3", "--run", "r"], "found --model-shape with --run; needed sizes alone"),
        (["--model-shape", "llama-8b", "--examples", "3", "--segments", "2"], "found --model-shape with --segments; needed"),
        (["--model-shape", "llama-8b", "--examples", "3", "--task", "masked_lm"], "found --model-shape with --task; needed"),
        (["--model-shape", "llama-8b", "--examples", "3", "--split", "test"], "found --model-shape with --split; needed"),
        (["--model-shape", "llama-8b", "--examples", "3", "--long", "split"], "found --model-shape with --long; needed"),
        (["--model-shape", "llama-8b", "--examples", "nan"], "found --examples nan; needed .* a whole number"),
        (["--model-shape", "llama-8b", "--examples", "1.5"], "found --examples 1.5; needed .* a whole number"),
        (["--model-shape", "llama-9b", "--examples", "3"], "found model shape 'llama-9b'; needed one of: llama-1b"),
        (["--model-shape", "llama-8b", "--examples", "0"], "found examples=0; needed 1 or more"),
        (["--model-shape", "llama-8b", "--examples", "3", "--gpu", "abacus"], "found gpu='abacus'; needed one of: a100"),
        (["--model-shape", "llama-8b", "--examples", "3", "--gpus", "-1"], "found gpus=-1; needed a positive number"),
        (["--model-shape", "llama-8b", "--examples", "3", "--track", "x"], "found the pattern 'x', which matches no weight"),
        (["--model-shape", "llama-8b", "--examples", "3", "--ignore", "*"], "found patterns that leave no weight"),
    ],
)
def test_mistakes_are_one_line(capsys, words, said):
    assert main(["forecast", *words]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and err.count("\n") == 1


def test_the_types_of_errors():
    with pytest.raises(UnknownOption):
        Cluster(gpu="abacus")
    with pytest.raises(BadInput, match="found tflops=-1; needed a positive number"):
        Cluster(tflops=-1)


def test_the_page_shows_what_the_commands_print(capsys):
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    command, printed = re.search(r"```sh\nwhence (forecast [^\n]*)\n```\n\n```text\n(.*?)```", page, re.S).groups()
    assert main(command.split()) == 0
    assert capsys.readouterr().out == printed
    spec = importlib.util.spec_from_file_location("scale_table", ROOT / "benchmarks" / "scale_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out in page

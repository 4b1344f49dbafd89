"""Verbs about truth, end to end: score, attribute, bank, evaluate."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import record_language_run
from whence.cli import main
from whence.evaluate import load_table, open_bank, origin_of_table, save_table


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"id": "q0", "text": "a cat sat"}\n{"id": "q1", "text": "the dog ran off"}\n')
    return path


def test_from_a_bank_to_a_comparison(run, tmp_path, model_folder, data_file, queries):
    store, tables = tmp_path / "store", tmp_path / "tables"
    run("build", model_folder, data_file, "-o", store, "--method", "logra", "--rank", "8")
    scored = json.loads(run("score", store, queries, "-o", tables / "logra"))
    assert scored["queries"] == 2 and scored["train"] == 12
    assert any(note.startswith("damping 0.1 x mean eigenvalue") for note in scored["notes"])
    exact = json.loads(
        run("attribute", model_folder, data_file, queries, "-o", tables / "ekfac", "--factors", tmp_path / "fit")
    )
    assert exact["method"] == "ekfac, default damping" and exact["train"] == 12
    assert any(note.startswith("damping 0.1 x mean eigenvalue") for note in exact["notes"])
    assert load_table(tables / "ekfac").scores.shape == (2, 12)
    assert load_table(tables / "logra").bytes_per_example > 0

    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "values = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))\n"
        "def retrain(keep, seed):\n    return -(values[keep].sum(0) + 0.1 * seed)\n"
    )
    bank = tmp_path / "bank"
    words = ["bank", "--train", f"{script}:retrain", "--data", data_file, "--queries", queries, "-o", bank]
    made = json.loads(run(*words, "--subsets", 8, "--seeds", 2, "--json"))
    assert made == {"bank": str(bank), "subsets": 8, "seeds": 2, "queries": 2, "examples": 12}
    assert open_bank(bank).train_ids[0] == "t0" and open_bank(bank).query_ids == ("q0", "q1")
    out = run("evaluate", bank, tables / "logra", tables / "ekfac")
    assert "ekfac" in out and "8 subsets with 50% of 12 examples, 2 seeds each, 2 queries" in out


def test_a_bank_of_another_is_imported(run, tmp_path):
    masks = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    np.savez(tmp_path / "others.npz", masks=masks.numpy(), losses=np.random.default_rng(0).normal(size=(6, 3)))
    name = tmp_path / "others.npz"
    words = ["bank", "-o", tmp_path / "bank", "--masks", f"{name}:masks", "--outcomes", f"{name}:losses", "--values", "loss"]
    assert "subsets 6, seeds 1, queries 3, examples 10" in run(*words)
    assert torch.equal(open_bank(tmp_path / "bank").masks_MN, masks)
    published = tmp_path / "published.jsonl"
    published.write_text('{"train_subset": [0, 2], "test_loss": [1.5]}\n{"train_subset": [1], "test_loss": [0.5]}\n')
    assert "subsets 2, seeds 1, queries 1, examples 3" in run("bank", "-o", tmp_path / "published", "--masks", published)
    assert open_bank(tmp_path / "published").values_MSQ[:, 0, 0].tolist() == [-1.5, -0.5]


def test_leaving_one_out_at_a_time(run, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("def retrain(keep, seed):\n    return [float(keep.sum())]\n")
    words = ["bank", "--train", f"{script}:retrain", "--examples", 5, "--leave-out", 1, "--subsets", 99, "--seeds", 1]
    run(*words, "-o", tmp_path / "bank")
    assert torch.equal(open_bank(tmp_path / "bank").masks_MN, ~torch.eye(5, dtype=torch.bool))


def test_what_is_missing_is_said_in_one_line(run, tmp_path, queries, model_folder, data_file):
    training = ["bank", "-o", tmp_path / "b", "--train", "x.py:f", "--examples", 5]
    for words, text in (
        (["bank", "-o", tmp_path / "b"], "no way to train, or more than one"),
        (["bank", "-o", tmp_path / "b", "--train", "x.py:f"], "no number of training examples"),
        (["bank", "-o", tmp_path / "b", "--train", "x.py:f", "--examples", "4"], "no Python file"),
        (["bank", "-o", tmp_path / "b", "--masks", "m.jsonl", "--outcomes", "o.npy"], "a .jsonl of runs alone"),
        (["bank", "-o", tmp_path / "b", "--masks", "m.npy"], "one of --train, --command, and --masks with --outcomes"),
        ([*training, "--data", data_file], "found --examples with --data"),
        ([*training, "--leave-out", 1, "--fraction", 0.3], "found --fraction with --leave-out"),
        ([*training, "--leave-out", 1, "--seed", 3], "found --seed with --leave-out 1"),
        (["bank", "-o", tmp_path / "b", "--masks", "m", "--outcomes", "o", "--workers", 2], "found --workers with --masks"),
        (["bank", "-o", tmp_path / "b", "--masks", "m", "--outcomes", "o", "--subsets", 2], "found --subsets with --masks"),
        (["score", tmp_path / "nothing", queries, "-o", tmp_path / "t"], "nothing"),
        (["attribute", model_folder, data_file, queries, "-o", tmp_path / "t", "--method", "magic"], "unknown method 'magic'"),
        (["bench", "mnist", "-o", tmp_path / "x"], "the setting 'mnist'"),
    ):
        message = run(*words, status=2)
        assert text in message and message.strip().count("\n") == 0 and "Traceback" not in message


def test_a_table_is_not_written_over_by_another(run, tmp_path, model_folder, other_model_folder, data_file, queries):
    attribute = ["attribute", model_folder, data_file, queries, "-o", tmp_path / "t", "--method", "grad-dot-exact"]
    before = run(*attribute)
    scores = (tmp_path / "t" / "scores.npy").read_bytes()
    assert run(*attribute) == before  # the same again is no loss
    run("build", model_folder, data_file, "-o", tmp_path / "s", "--method", "logra", "--rank", 4)
    score = ["score", tmp_path / "s", queries, "-o", tmp_path / "u"]
    run(*score)
    run(*score)
    plain = tmp_path / "plain"
    save_table(load_table(tmp_path / "t"), plain)
    for words, what in (
        ([*attribute[:-1], "kfac"], "t made with other settings (method)"),
        ([*attribute, "--query-rank", 2], "t made with other settings (query_rank)"),
        ([*attribute[:3], data_file, *attribute[4:]], "t made with other settings (queries)"),
        ([*attribute[:1], other_model_folder, *attribute[2:]], "t made with other settings (model)"),
        ([*attribute, "--ensemble", tmp_path / "e"], "t made with other settings (ensemble, model)"),
        ([*score, "--relative-damping", 0.5], "u made with other settings (relative_damping)"),
        ([*score[:-1], tmp_path / "t"], "t made with other settings (method, method_version"),
        ([*score[:-1], plain], "plain that does not say what it was made with"),
    ):
        error = run(*words, status=2)
        assert (
            what in error and "; needed a new folder" in error and error.splitlines()[-1].endswith("or move that one away")
        ), error
    assert (tmp_path / "t" / "scores.npy").read_bytes() == scores and not (tmp_path / "e" / "ensemble.json").exists()


def test_attribute_through_a_recorded_run(tmp_path, model_folder, data_file, capsys):
    """Train a copy of the model under a recorder, save it, and go back through the run from the command line."""
    record_language_run(tmp_path, model_folder, data_file, (0, 4, 8, 0))
    arguments = ["attribute", tmp_path / "trained", data_file, data_file, "-o", tmp_path / "t", "--method", "source"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "found method='source' without a run" in capsys.readouterr().err
    assert main([str(argument) for argument in [*arguments, "--run", tmp_path / "run", "--segments", "2"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["queries"] == found["train"] == 12 and "source" in found["method"]
    # A proxy's run, for a target that is only named.
    proxy = ["proxy", *arguments[1:5], tmp_path / "q", "--method", "source", "--run", tmp_path / "run", "--segments", "2"]
    named = [*proxy, "--target-name", "closed"]
    assert main([str(word) for word in [*named, "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["target"] == "closed"
    torch.testing.assert_close(load_table(tmp_path / "q").scores, load_table(tmp_path / "t").scores, rtol=0, atol=0)
    target = [*proxy, "--target", tmp_path / "trained"]
    for more, says in (
        ([*target, "--probe", 2], "found --probe with --run"), ([*target, "--distil", 1], "found --distil with --run"),
        ([*named, "--per-segment"], "--per-segment for a proxy"), ([*named, "--by", "representer"], "with --by representer"),
    ):  # fmt: skip
        assert main([str(word) for word in more]) == 2
        assert says in capsys.readouterr().err
    words = [*arguments[:5], tmp_path / "p", "--run", tmp_path / "run"]
    assert main([str(word) for word in [*words, "--method", "tracin", "--per-segment"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["parts"]) == ["steps 0 to 2", "steps 2 to 4"]
    parts = [load_table(folder) for folder in found["parts"].values()]
    assert parts[1].method == "tracin, 2 checkpoints, steps 2 to 4"
    whole = origin_of_table(tmp_path / "p")
    assert len(whole["models"]) == 1 and all(origin_of_table(folder) == whole for folder in found["parts"].values())
    torch.testing.assert_close(sum(part.scores for part in parts), load_table(tmp_path / "p").scores, rtol=1e-5, atol=1e-6)
    assert main([str(word) for word in [*words, "--method", "tracin", "--per-segment", "--ensemble", tmp_path / "e"]]) == 2
    assert "found --per-segment with --ensemble" in capsys.readouterr().err
    words = ["forecast", tmp_path / "trained", data_file, "--exact", "source", "--queries", data_file, "--json"]
    assert main([str(word) for word in words]) == 2
    assert "found method='source' without a run" in capsys.readouterr().err
    assert main([str(word) for word in [*words, "--run", tmp_path / "run", "--segments", "2"]]) == 0
    assert json.loads(capsys.readouterr().out)["passes_to_score"] == 2

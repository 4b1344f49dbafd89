"""The page about curation is true, and its examples run."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from whence.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "curation.md").read_text("utf-8")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "curation" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "curation.md", "exec"), names)
    assert capsys.readouterr().out.startswith("48 ") and (tmp_path / "chosen" / "list.jsonl").exists()


def test_the_pages_commands_run(tmp_path, monkeypatch, model_folder, data_file, capsys):
    """As they stand, one after the other, with the tiny model where the reader's own would be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(model_folder)
    (tmp_path / "train.jsonl").write_bytes(data_file.read_bytes())
    (tmp_path / "validation.jsonl").write_text('{"text": "a cat sat"}\n')
    (tmp_path / "train.py").write_text("def retrain(keep, seed):\n    return [-float(keep[:4].sum()) + seed]\n")
    blocks = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)
    commands = [
        line
        for kind, block in blocks
        if not kind
        for line in block.replace("\\\n", "").splitlines()
        if line.startswith("whence ")
    ]
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    shown = capsys.readouterr().out
    assert "trained on" in shown and "tightness" in shown and (tmp_path / "clusters.html").exists()


def test_every_option_of_the_page_exists():
    reference = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for option in set(re.findall(r"`[^`\n]*?(--[a-z-]+)", PAGE)):
        assert f"`{option}" in reference or option in reference, option


@pytest.mark.slow
def test_wrong_labels_are_dropped_and_it_helps(tmp_path):
    found = example("digits").main(tmp_path, seeds=3, workers=1, share=0.2, judge="test loss")
    for name in ("influence", "loss", "the wrong labels"):
        assert found[name]["loss"]["high"] < found["random"]["loss"]["low"]
        assert found[name]["error_minus_random"]["mean"] < 0
    assert int(found["influence"]["hit"].split()[0]) > 160


@pytest.mark.slow
def test_half_a_corpus_for_one_topic(tmp_path):
    found = example("topic").main(tmp_path, seeds=1, workers=1)
    assert found["influence"]["loss"] < min(found[name]["loss"] for name in ("random", "low loss", "high loss"))
    assert int(found["influence"]["kept_of_topic"].split()[0]) > 45


@pytest.mark.slow
def test_shared_directions_are_nearer_to_topics_than_whole_rows(tmp_path):
    import logging

    from whence.demo.corpus import python_docs
    from whence.demo.story import _model
    from whence.pipeline import build

    logging.getLogger("transformers").setLevel(logging.ERROR)
    task, dataset = _model(tmp_path / "model", python_docs(), 0)
    store = build(task, dataset, tmp_path / "store", quiet=True)
    found = example("skills").main(store.folder, 24)
    assert max(found["whole rows"]) < min(found["32 shared directions"]) < min(found["words (TF-IDF)"])

"""The page about curation is true, and its examples run."""

import importlib.util
import re

import pytest

from tests.pages import ROOT, page_commands, page_text, run_blocks
from tests.settings import QUIET


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "curation" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/curation.md", 3)
    assert capsys.readouterr().out.startswith("48 ") and (tmp_path / "chosen" / "list.jsonl").exists()


def test_the_pages_commands_run(run, reader):
    """As they stand, one after the other, with the tiny model where the reader's own would be."""
    (reader / "validation.jsonl").write_text('{"text": "a cat sat"}\n')
    (reader / "train.py").write_text("def retrain(keep, seed):\n    return [-float(keep[:4].sum()) + seed]\n")
    shown = "".join(run(*words) for words in page_commands("docs/curation.md", 4))
    assert "trained on" in shown and "tightness" in shown and (reader / "clusters.html").exists()


def test_every_option_of_the_page_exists():
    reference = page_text("docs/cli.md")
    for option in set(re.findall(r"`[^`\n]*?(--[a-z-]+)", page_text("docs/curation.md"))):
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
    from whence.demo.trained import trained_on
    from whence.pipeline import build

    logging.getLogger("transformers").setLevel(logging.ERROR)
    documents = python_docs()
    task = trained_on(documents, tmp_path / "model")
    store = build(task, task.prepare(documents), tmp_path / "store", runtime=QUIET)
    found = example("skills").main(store.folder, 24)
    assert max(found["whole rows"]) < min(found["32 shared directions"]) < min(found["words (TF-IDF)"])

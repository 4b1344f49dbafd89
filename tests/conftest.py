"""What several test files share: a tiny language model as Hugging Face saves it, and data for it."""

import json
import os
import re
import tempfile

import pytest
import torch

from whence.cli import main

# Nothing here may reach out; what needs the network has to fail as it would without one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What readers note about stores belongs to these tests alone; processes that they start inherit it.
_CACHE = tempfile.TemporaryDirectory(prefix="whence-tests-")
os.environ["WHENCE_CACHE_DIR"] = _CACHE.name
# On models this small a pool of threads costs more than it saves, and two runs have to agree to the bit.
torch.set_num_threads(1)


def save_tokenizer(folder, *, reverse=False):
    """One token per byte; `reverse` numbers them the other way round, which makes it another tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)]
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def save_language_model(folder, *, seed=0):
    """GPT-2 with one layer of width 8 and a context of 32 bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=257, n_positions=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def record_language_run(folder, model_folder, data_file, starts, stages=()):
    """Train a copy of the model on four texts a step, from each of some places on, and keep the run and the model that it ended with.

    Args:
        folder: Gets `run` and `trained`.
        model_folder: The model and its tokenizer.
        data_file: The texts.
        starts: The place of each step's first text.
        stages: Steps that begin a stage.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import whence
    from whence.load import load_records

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    task = whence.CausalLM(model, tokenizer)
    train = task.prepare(load_records(str(data_file)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with whence.Recorder(folder / "run", model, optimizer, every=2) as recorder:
        for number, start in enumerate(starts):
            if number in stages:
                recorder.stage(f"from {start}", optimizer)
            batch = train.examples[start : start + 4]
            recorder.batch([example.id for example in batch])
            task.loss(model, task.collate(batch)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder / "trained")
    tokenizer.save_pretrained(folder / "trained")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model and its tokenizer; tests that change it take a copy."""
    return save_language_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    """The same architecture with other weights."""
    return save_language_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def other_tokenizer_folder(tmp_path_factory):
    """The weights of `model_folder` with another tokenizer."""
    folder = save_language_model(tmp_path_factory.mktemp("models") / "renumbered")
    save_tokenizer(folder, reverse=True)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """Twelve short texts with ids and sources."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    texts = [f"{animal} {verb}" for animal in ("a cat", "the dog", "one bird") for verb in ("sat", "ran off", "sleeps", "é")]
    lines = [json.dumps({"id": f"t{number}", "source": "book", "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(capsys):
    """The command line: takes the words and the expected status; gives stdout, or of a command that is refused stderr without its stages."""

    def command(*words, status=0):
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        captured = capsys.readouterr()
        told = re.sub(r"^\d of \d: .*\n", "", captured.err, flags=re.MULTILINE)
        return told if status == 2 else captured.out

    return command


@pytest.fixture
def reader(tmp_path, monkeypatch, model_folder, data_file):
    """The folder of somebody who reads a page, and the current one: with a model and data where the pages say theirs are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(model_folder)
    (tmp_path / "train.jsonl").write_bytes(data_file.read_bytes())
    return tmp_path

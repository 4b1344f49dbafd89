"""Models larger than a device: split over processes, laid out over memory and a disk, or in few bits, they give the rows of the whole one."""

import pytest
import torch

import whence
from tests.test_distributed import bytes_of, processes, together  # noqa: F401

SMALL = {"rank": 3, "rows_per_shard": 4, "batch_positions": 24, "dtype": "float64", "quiet": True}
METHODS = {
    "logra": {"method": "logra"},
    "logra-pca": {"method": "logra-pca"},
    "trak": {"method": "trak", "rank": 32},
    "aligned": {"method": "aligned", "rank": 8, "dtype": "int8"},
}


def gpt2(seed=0, checkpointing=False):
    """A small GPT-2 with its head tied to the embedding."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=16, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).double()
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


def task_of(model, **options):
    return whence.CausalLM(model, FAKE, **options)


class Tokenizer:
    """As much of one as ready token ids need."""

    model_max_length = 16

    def get_vocab(self):
        return {"a": 0}


FAKE = Tokenizer()


def examples(count, seed=1):
    """Of lengths that make shards of unequally many batches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 16, (count,), generator=generator).tolist()
    return [
        {"id": f"e{seed}.{number}", "input_ids": torch.randint(20, (length,), generator=generator).tolist()}
        for number, length in enumerate(lengths)
    ]


def split(model, ranks):
    """The model over all processes: each block its own group, embedding and head with the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (ranks.count,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _build_and_ask(ranks, folder, method, checkpointing=False):
    with ranks.connected():
        task = task_of(split(gpt2(checkpointing=checkpointing), ranks))
        store = whence.build(task, examples(26), folder, ranks=ranks, **{**SMALL, **METHODS[method]})
        table = whence.score_table(store, task, examples(3, seed=2), ranks=ranks, quiet=True)
        hits = whence.query(store, task, examples(3, seed=2), k=5, ranks=ranks, quiet=True)
    return table.scores.tolist(), hits.to_dict()


@pytest.mark.parametrize("method", list(METHODS))
def test_a_sharded_model_gives_the_store_of_the_whole_one(processes, tmp_path, method):  # noqa: F811
    found = together(processes, _build_and_ask, tmp_path / "split", method)
    task = task_of(gpt2())
    store = whence.build(task, examples(26), tmp_path / "whole", **{**SMALL, **METHODS[method]})
    table = whence.score_table(store, task, examples(3, seed=2), quiet=True)
    assert bytes_of(tmp_path / "split") == bytes_of(tmp_path / "whole")
    assert all(scores == table.scores.tolist() for scores, _ in found)
    assert found[0][1] == found[1][1] == whence.query(store, task, examples(3, seed=2), k=5, quiet=True).to_dict()

"""Models larger than a device: split over processes, laid out over memory and a disk, or in few bits, they give the rows of the whole one."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import whence
from tests.conftest import save_language_model
from tests.settings import QUIET
from tests.test_distributed import _command, bytes_of, results, start, together
from whence.capture import capture, check_task, frozen, plan_units
from whence.capture.halves import in_halves
from whence.capture.memory import forecast
from whence.capture.taps import taps
from whence.cli import main
from whence.data import batches
from whence.distributed import Ranks
from whence.errors import BadInput, OutOfMemory, RankLost, Unsupported
from whence.load import load_task
from whence.load.placement import connected_for, placed
from whence.pipeline.stored.lockstep import Turn, lost_ranks, turns
from whence.score import Batching
from whence.settings import Placement
from whence.sharded_weights import is_offloaded, is_sharded, main_device, named_weights
from whence.store import Pending, open_store, verify_store

ROOT = Path(__file__).parents[1]
SMALL = {"rank": 3, "rows_per_shard": 4, "batch_positions": 24, "dtype": "float64"}
METHODS = {
    "logra": {"method": "logra"},
    "logra-pca": {"method": "logra-pca"},
    "trak": {"method": "trak", "rank": 32},
    "aligned": {"method": "aligned", "rank": 8, "dtype": "int8"},
}


class Tokenizer:
    """As much of one as ready token ids need."""

    model_max_length = 16

    def get_vocab(self):
        return {"a": 0}


FAKE = Tokenizer()


def gpt2(tied=True, checkpointing=False):
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied
    )
    return placed(transformers.GPT2LMHeadModel(config).double(), Placement(gradient_checkpointing=checkpointing), Ranks())


def lora(model):
    import peft

    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, dtype=torch.float64)
    return adapted


def task_of(model, **options):
    return whence.CausalLM(model, FAKE, **options)


def examples(count, seed=1):
    """Short ones in every other shard, so that shards have two batches or four."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(3, (count,), generator=generator).tolist()
    lengths = [5 + 8 * (number // 4 % 2) + extra for number, extra in enumerate(noise)]
    return [
        {"id": f"e{seed}.{number}", "input_ids": torch.randint(20, (length,), generator=generator).tolist()}
        for number, length in enumerate(lengths)
    ]


def build(task, folder, method="logra", count=26, *, ranks=Ranks(), **more):
    return whence.build(
        task,
        examples(count),
        folder,
        config=whence.BuildConfig(**{**SMALL, **METHODS[method], **more}),
        runtime=whence.Runtime(quiet=True, ranks=ranks),
    )


@pytest.fixture(scope="module")
def processes():
    """Children of one process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_sharded_models", "tests.preloaded"])
    return context


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Bytes of a build with the whole model, its scores and its hits, per method."""
    made = {}
    for method in METHODS:
        folder, task = tmp_path_factory.mktemp("whole") / method, task_of(gpt2())
        store = build(task, folder, method)
        scores = whence.score_table(store, task, examples(3, seed=2), runtime=QUIET).scores.tolist()
        made[method] = bytes_of(folder), scores, whence.query(store, task, examples(3, seed=2), k=5, runtime=QUIET).to_dict()
    return made


# Split over processes


def split(model, ranks):
    """Each block its own group, embedding and head together in the last."""
    return placed(model, Placement(shard_model=True), ranks)


def _build_and_ask(ranks, folder, method, checkpointing):
    with ranks.connected():
        task = task_of(split(gpt2(checkpointing=checkpointing), ranks))
        store = build(task, folder, method, ranks=ranks)
        table = whence.score_table(store, task, examples(3, seed=2), runtime=whence.Runtime(ranks=ranks, quiet=True))
        hits = whence.query(store, task, examples(3, seed=2), k=5, runtime=whence.Runtime(ranks=ranks, quiet=True))
    return table.scores.tolist(), hits.to_dict()


@pytest.mark.parametrize(
    ("method", "count", "checkpointing"),
    [("logra", 2, False), ("logra", 3, True), ("logra-pca", 2, False), ("trak", 2, False), ("aligned", 2, True)],
)
def test_a_split_model_gives_the_bytes_of_the_whole_one(processes, tmp_path, alone, method, count, checkpointing):
    """Random, learned and fitted encoders; the head is tied to the embedding; shards have two batches or four."""
    found = together(processes, _build_and_ask, tmp_path / "split", method, checkpointing, count=count)
    wanted, scores, hits = alone[method]
    assert without_fidelity(bytes_of(tmp_path / "split")) == without_fidelity(wanted)
    hits["notes"] = [note for note in hits["notes"] if not note.startswith("stored against exact")]
    assert all(mine == (scores, hits) for mine in found)


def without_fidelity(files):
    """A store's files but for its agreement with exact scores, which takes whole gradients and is not measured on a split model."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"].pop("fidelity.json", None)
    return {name: data for name, data in files.items() if name != "fidelity.json"} | {"manifest.json": manifest}


def _write_slowly(ranks, folder, pause):
    """One rank's part; says which shards it wrote."""
    from whence.store.writer import Writer

    written, write = [], Writer.write

    def slowly(self, shard, *more):
        time.sleep(pause)
        write(self, shard, *more)
        written.append(shard.number)

    Writer.write = slowly
    with ranks.connected():
        build(task_of(split(gpt2(), ranks)), folder, ranks=ranks)
    return written


def sealed(folder):
    return {int(path.stem): path.stat().st_mtime_ns for path in folder.glob("shards/*.json")}


def test_a_lost_rank_stops_the_others_and_the_rerun_makes_what_is_missing(processes, tmp_path, alone):
    folder = tmp_path / "store"
    running = start(processes, _write_slowly, folder, 0.1)
    while len(sealed(folder)) < 3:
        time.sleep(0.005)
    os.kill(running[1][0].pid, signal.SIGKILL)
    other, _ = results(running, timeout=60)
    assert isinstance(other, RankLost)
    assert str(other).startswith(
        "found rank 0 of 2 waiting for one that is gone, which had a part of the model; needed all of them"
    )
    before = sealed(folder)
    assert 3 <= len(before) < 7 and not (folder / "manifest.json").exists()
    written = together(processes, _write_slowly, folder, 0.0, count=3)
    assert sorted(number for mine in written for number in mine) == sorted(set(range(7)) - set(before))
    assert {number: mark for number, mark in sealed(folder).items() if number in before} == before
    assert bytes_of(folder) == alone["logra"][0] and verify_store(open_store(folder)) == []


def test_turns_have_equally_many_batches_for_all():
    task = task_of(gpt2())
    dataset = task.prepare(examples(26)).examples
    pending = [Pending(number, 4 * number, min(4 * number + 4, 26)) for number in (0, 2, 3, 5, 6)]
    mine = [list(turns(pending, dataset, Batching(24), Ranks(rank, 3))) for rank in range(3)]
    assert [[turn.shard.number for turn in theirs] for theirs in mine] == [[0, 5], [2, 6], [3, 6]]
    assert [[turn.is_kept for turn in theirs] for theirs in mine] == [[True, True], [True, True], [True, False]]
    calls = [[turn.calls for turn in theirs] for theirs in mine]
    planned = [
        len(list(batches([one.length for one in dataset[shard.start : shard.stop]], max_positions=24))) for shard in pending
    ]
    assert calls == [[max(planned[:3]), max(planned[3:])]] * 3 and min(planned[:3]) < max(planned[:3])
    assert list(turns([], dataset, Batching(24), Ranks(0, 3))) == [] and isinstance(mine[0][0], Turn)


def _look(ranks, folder):
    """What a split model looks like, before and after it is used."""
    found = {}
    with ranks.connected():
        for name, make in {"plain": gpt2, "lora": lambda: lora(gpt2())}.items():
            model = split(make(), ranks)
            task, other = task_of(model), task_of(make())
            build(task, folder / name, ranks=ranks, count=9)
            ranks.wait()
            build(other, folder / f"{name}{ranks.rank}", count=9)
            with torch.no_grad():
                model(input_ids=torch.ones(1, 4, dtype=torch.long))  # leaves the outermost weights gathered
            found[name] = (
                is_sharded(model),
                task.weights == other.weights,
                [type(value).__name__ for value in model.parameters()] == ["DTensor"] * len(list(model.parameters())),
                [unit.name for unit in plan_units(task).units] == [unit.name for unit in plan_units(other).units],
                bytes_of(folder / name) == bytes_of(folder / f"{name}{ranks.rank}"),
                [value.requires_grad for value in model.parameters()]
                == [value.requires_grad for value in other.model.parameters()],
                all(value.grad is None for value in model.parameters()),
            )
        task = task_of(split(gpt2(), ranks))
        refused = []
        for attempt in (
            lambda: whence.attribute(task, examples(4), examples(2)),
            lambda: whence.self_influence(task, examples(4)),
            lambda: plan_units(task_of(task.model, functional=["*.c_fc.weight"])),
            lambda: whence.build(task, examples(4), folder / "none"),
            lambda: in_halves([1, 2], _out_of_memory, task.model),
            lambda: plan_units(task_of(nn.parallel.DistributedDataParallel(gpt2()))),
            lambda: plan_units(task_of(_fsdp1(gpt2()))),
            lambda: plan_units(task_of(_tensor_parallel(gpt2(), ranks))),
        ):
            try:
                attempt()
            except whence.WhenceError as error:
                refused.append(error)
    return found, refused


def _out_of_memory(items):
    raise RuntimeError("can't allocate memory")


def _fsdp1(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def _tensor_parallel(model, ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    layer = model.transformer.h[0].mlp.c_fc
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.data, init_device_mesh("cpu", (ranks.count,)), [Shard(0)]))
    return model


def test_a_split_model_is_left_as_it_was_and_refused_where_it_cannot_work(processes, tmp_path):
    for found, refused in together(processes, _look, tmp_path):
        assert found == dict.fromkeys(("plain", "lora"), (True,) * 7)
        exact, own, functional, ranks, memory, joined, flat, tensors = refused
        assert isinstance(exact, Unsupported) and str(exact) == (
            "found whole gradients with a model that fully_shard split over processes; needed a whole model, since the processes do not run "
            "it equally often there; do this: build a store with it and query that, or load the model with a device_map"
        )
        assert str(own) == str(exact)
        assert str(functional).startswith(
            "found the parameter 'transformer.h.0.mlp.c_fc.weight' for torch.func in a model that is spread"
        )
        assert isinstance(ranks, BadInput)
        assert str(ranks).startswith(
            "found a model that fully_shard split over 2 processes, and ranks that are 1; needed all processes"
        )
        assert isinstance(memory, OutOfMemory)
        assert str(memory).startswith(
            "found no memory for a batch of 2 examples in one of the processes that the model is split over"
        )
        assert str(joined).startswith("found a model in DistributedDataParallel; needed the model itself")
        assert str(flat).startswith("found a model in FullyShardedDataParallel, which flattens its parameters into one")
        assert str(tensors).startswith("found parameters that are DTensors in a model without fully_shard")


def test_ranks_in_step_divide_nothing():
    step, sums = Ranks(1, 3, in_step=True), {"a": torch.ones(2)}
    assert step.mine("abcd") == list("abcd") and step.added_up(sums)["a"] is sums["a"]


def test_only_what_another_rank_broke_is_called_a_lost_rank():
    step = Ranks(0, 2, in_step=True)
    with pytest.raises(RuntimeError, match="shapes differ"), lost_ranks(step):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="Connection closed"), lost_ranks(Ranks(0, 2)):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RankLost), lost_ranks(step):
        raise RuntimeError("Connection closed by peer")


def _fit(ranks, folder):
    with ranks.connected():
        whence.pipeline.fit_curvature(
            task_of(split(gpt2(), ranks)), examples(12), folder, runtime=whence.Runtime(quiet=True, ranks=ranks)
        )


def test_curvature_of_a_split_model_is_used_by_the_whole_one(processes, tmp_path):
    together(processes, _fit, tmp_path / "split")
    tables = []
    for folder in (tmp_path / "split", tmp_path / "whole"):
        before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
        tables.append(
            whence.attribute(
                task_of(gpt2()), examples(12), examples(2, seed=2), method=whence.EKFAC(factors=folder), runtime=QUIET
            )
        )
        after = sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
        assert folder.name == "whole" or (before == after and len(before) == 3)
    torch.testing.assert_close(tables[0].scores, tables[1].scores, rtol=0, atol=0)


# Over devices and a disk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("untied")
    gpt2(tied=False).save_pretrained(found)
    return found


MAPS = {
    "blocks": {"transformer": "cpu", "transformer.h.0": "disk", "transformer.h.1": "disk", "lm_head": "cpu"},
    "ends": {"transformer": "disk", "transformer.h": "cpu", "lm_head": "disk"},
    "all": {"": "disk"},
}


def dispatched(folder, name, tmp_path):
    import transformers

    given = MAPS[name]
    if name == "blocks":
        parts = {f"transformer.{part}": "cpu" for part in ("wte", "wpe", "drop", "ln_f")}
        given = {**parts, **{key: value for key, value in given.items() if key != "transformer"}}
    elif name == "ends":
        parts = {f"transformer.{part}": "disk" for part in ("wte", "wpe", "drop", "ln_f")}
        given = {**parts, "transformer.h": "cpu", "lm_head": "disk"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map=given, offload_folder=str(tmp_path / "off"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(MAPS))
def test_an_offloaded_model_gives_the_bytes_and_scores_of_the_whole_one(folder, tmp_path, name, checkpointing):
    pytest.importorskip("accelerate")
    model = placed(dispatched(folder, name, tmp_path), Placement(gradient_checkpointing=checkpointing), Ranks())
    task, whole = task_of(model), task_of(gpt2(tied=False))
    assert is_offloaded(model) and task.device == torch.device("cpu") and task.weights == whole.weights
    flags = [value.requires_grad for value in model.parameters()]
    stores = [build(one, tmp_path / place, count=9) for place, one in (("spread", task), ("whole", whole))]
    assert bytes_of(tmp_path / "spread") == bytes_of(tmp_path / "whole")
    assert [value.requires_grad for value in model.parameters()] == flags
    found, wanted = (
        whence.score_table(store, one, examples(2, seed=2), runtime=QUIET)
        for store, one in zip(stores, (task, whole), strict=True)
    )
    assert found.scores.tolist() == wanted.scores.tolist()
    for method in ("ekfac", "datainf"):
        found, wanted = (
            whence.attribute(one, examples(9), examples(2, seed=2), method=method, runtime=QUIET) for one in (task, whole)
        )
        assert found.scores.tolist() == wanted.scores.tolist()


def test_the_check_sees_gradients_of_weights_that_are_loaded_for_a_pass(folder, tmp_path):
    pytest.importorskip("accelerate")
    task = task_of(dispatched(folder, "blocks", tmp_path))
    plan = plan_units(task)
    assert check_task(task, plan, task.prepare(examples(6)).examples) == []
    broken = next(layer for layer in plan.layers if layer.name == "transformer.h.1.mlp.c_fc")
    rule = replace(
        broken.rule, weight=lambda module, inputs, grad, joined: broken.rule.weight(module, inputs, 2 * grad, joined)
    )
    plan = replace(plan, layers=tuple(replace(layer, rule=rule) if layer is broken else layer for layer in plan.layers))
    with pytest.raises(
        Unsupported, match="captured gradient of 'transformer.h.1.mlp.c_fc.weight' that differs from autograd's"
    ):
        check_task(task, plan, task.prepare(examples(6)).examples)


def test_checkpointing_holds_no_loaded_weights(folder, tmp_path):
    """Without it every weight that a pass loads is kept for the way back, and offloading saves nothing."""
    pytest.importorskip("accelerate")
    kept = []
    for checkpointing in (False, True):
        model = placed(dispatched(folder, "all", tmp_path), Placement(gradient_checkpointing=checkpointing), Ranks())
        held: dict[int, int] = {}

        def pack(tensor, held=held):
            if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        task = task_of(model)
        batch = task.collate(task.prepare(examples(2)).examples)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            capture(task, plan_units(task), batch, lambda index, pair: None, num_examples=2)
        kept.append(sum(held.values()))
        assert forecast(task, plan_units(task), task.prepare(examples(9)).examples).model_bytes < 4096  # but for buffers
    blocks = 8 * sum(value.numel() for value in gpt2().transformer.h.parameters() if value.ndim == 2)
    assert kept[0] - kept[1] >= blocks


def test_pairs_are_handed_out_where_they_are_wanted():
    """As on a model over several GPUs, whose pairs come from each of them."""
    task = task_of(gpt2())
    plan, seen = plan_units(task), set()
    batch = task.collate(task.prepare(examples(2)).examples)

    def consume(index, pair):
        seen.update(
            side.times(torch.zeros(side.size, 1, device="meta").double()).device.type for side in (pair.outputs, pair.inputs)
        )

    with frozen(task.model), taps(plan, consume, 2, torch.device("meta")):
        task.loss(task.model, batch).sum().backward()
    assert seen == {"meta"}


def test_what_offloading_cannot_do_is_refused(folder, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    gpt2().save_pretrained(tmp_path / "tied")
    task = task_of(dispatched(tmp_path / "tied", "all", tmp_path))
    with pytest.raises(
        Unsupported, match="the tied weights 'lm_head.weight' and 'transformer.wte.weight', of which one is offloaded"
    ):
        plan_units(task)
    plan_units(task_of(task.model, ignore=["*wte*"]))
    task = task_of(dispatched(folder, "blocks", tmp_path), functional=["*h.0.mlp.c_fc.weight"])
    with pytest.raises(
        Unsupported, match="h.0.mlp.c_fc.weight' for torch.func in a model that is spread over processes or devices"
    ):
        plan_units(task)
    plain = task_of(task.model)
    for attempt in (
        lambda: whence.attribute(plain, examples(4), examples(1), method="pcg", runtime=QUIET),
        lambda: whence.capture.with_weights(plain.model, {}, list),
    ):
        with pytest.raises(Unsupported, match="found passes with other weights than the model's own, as solvers, replays and"):
            attempt()
    with accelerate.init_empty_weights():
        empty = gpt2()
    with pytest.raises(
        BadInput, match="found the weight '.*' on the meta device, without values; needed a model that is loaded"
    ):
        list(named_weights(empty))
    assert main_device(nn.Linear(2, 2)) == torch.device("cpu")


# Gradient checkpointing


def test_checkpointing_of_transformers_stays_on(tmp_path):
    """In evaluation mode, which capture needs, transformers would leave it out without a word."""
    model, plain = gpt2(checkpointing=True), gpt2()
    runs = []
    for one in (model, plain):
        layer = one.transformer.h[0].mlp.act
        layer.register_forward_hook(
            lambda module, args, output, runs=runs, one=one: runs.append((one is model, module.training))
        )
    task = task_of(model)
    batch = task.collate(task.prepare(examples(3)).examples)
    for one in (model, plain):
        capture(task_of(one), plan_units(task_of(one)), batch, lambda index, pair: None, num_examples=3)
    assert runs == [(True, False), (True, False), (False, False)]  # a second time on the way back, and never in training mode
    assert build(task, tmp_path / "a", count=9).blueprint.model == task_of(plain).weights
    build(task_of(plain), tmp_path / "b", count=9)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert (
        model.training == plain.training and type(model.transformer.h[0]._gradient_checkpointing_func).__name__ != "_Evaluating"
    )


# Few bits


class Rounded(nn.Module):
    """A frozen layer of a kind that nobody knows, its weight in 8 bits."""

    def __init__(self, layer):
        super().__init__()
        self.register_buffer("scale", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (layer.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, inputs):
        return inputs @ (self.codes * self.scale).T


def test_layers_of_unknown_kinds_pass_through(tmp_path):
    torch.manual_seed(0)
    base, down, up = nn.Linear(6, 8, bias=False).double(), nn.Linear(6, 2).double(), nn.Linear(2, 8).double()

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up, self.head = base, down, up, nn.Linear(8, 3).double()

        def forward(self, inputs):
            return self.head(torch.tanh(self.base(inputs) + self.up(self.down(inputs))))

    quantized = Adapted(Rounded(base))
    twin = Adapted(base)
    twin.head = quantized.head
    base.weight.data = quantized.base.codes * quantized.base.scale
    records = [{"inputs": torch.randn(6, dtype=torch.float64), "label": number % 3} for number in range(9)]
    patterns = ["down.*", "up.*", "head.*"]
    tables = []
    for place, model in (("a", quantized), ("b", twin)):
        task = whence.Classification(model, track=patterns)
        store = whence.build(task, records, tmp_path / place, config=whence.BuildConfig(method="logra", **SMALL), runtime=QUIET)
        tables.append(whence.score_table(store, task, records[:2], runtime=QUIET).scores)
    torch.testing.assert_close(*tables, rtol=1e-9, atol=1e-12)


def quantized(kind, folder):
    import transformers

    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        given = {"quantization_config": transformers.TorchAoConfig(Int8WeightOnlyConfig())}
    else:
        how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        given = {"quantization_config": how, "device_map": "cpu"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **given)


def llama():
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=20, max_position_embeddings=16))


def decoded(model):
    """The same with weights of 32 bits that have the values of the few."""
    twin, layers = llama(), dict(model.named_modules())
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.Linear):
            weight = layers[name].weight
            if hasattr(weight, "quant_state"):
                from bitsandbytes.functional import dequantize_4bit

                layer.weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
            elif type(weight) is not nn.Parameter:
                layer.weight.data = weight.dequantize().float()
    return twin


@pytest.mark.parametrize("kind", ["torchao", "bitsandbytes"])
def test_adapters_on_a_quantized_model_are_captured_in_full(tmp_path, kind):
    """Against the same model with decoded weights, through which gradients surely go."""
    pytest.importorskip(kind)
    import peft

    llama().save_pretrained(tmp_path)
    scores = []
    base = quantized(kind, tmp_path)
    for place, model in (("few", base), ("many", decoded(base))):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        torch.manual_seed(1)
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.data.normal_(0, 0.1)
        task = task_of(adapted)
        before = task.weights
        store = build(task, tmp_path / place, count=9)
        scores.append(whence.score_table(store, task, examples(2, seed=2), runtime=QUIET).scores)
        assert task.weights == before and store.blueprint.model == before
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4 * float(scores[1].abs().max()))


def test_an_operation_without_a_derivative_is_found():
    """PyTorch takes it for a constant with a warning only, alike in capture and in autograd."""

    class Warning_(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, grad):
            warnings.warn("lib::op: an autograd kernel was not registered to the Autograd key(s)", UserWarning, stacklevel=1)
            return grad

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, inputs):
            return self.second(Warning_.apply(self.first(inputs)))

    task = whence.Classification(Odd())
    records = task.prepare([{"inputs": torch.randn(3), "label": 1}, {"inputs": torch.randn(3), "label": 0}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            Unsupported, match=r"a model with an operation that has no derivative \(lib::op\); needed operations that"
        ):
            check_task(task, plan_units(task), records.examples)


# Loading by name


def test_placements_that_contradict_themselves(tmp_path, model_folder):
    with pytest.raises(BadInput, match="found a device_map for a model that is split over processes; needed one of the two"):
        Placement(device_map="auto", shard_model=True)
    with pytest.raises(BadInput, match="found an offload_folder without a device_map; needed a device_map"):
        Placement(offload_folder=tmp_path)
    with (
        pytest.raises(BadInput, match="found shard_model with one process; needed several"),
        connected_for(Placement(shard_model=True), Ranks()),
    ):
        pass
    with pytest.raises(BadInput, match="found the device map .*none.json, which cannot be read"):
        load_task(str(model_folder), placement=Placement(device_map=str(tmp_path / "none.json")))
    with pytest.raises(BadInput, match="found gradient_checkpointing for .*job.py:task; needed a model by its folder or name"):
        load_task(f"{tmp_path / 'job.py'}:task", placement=Placement(gradient_checkpointing=True))
    with pytest.raises(Unsupported, match="found a Linear, which has no gradient checkpointing"):
        placed(nn.Linear(2, 2), Placement(gradient_checkpointing=True), Ranks())


def test_device_maps_and_types_on_the_command_line(tmp_path, model_folder, data_file, capsys):
    pytest.importorskip("accelerate")
    (tmp_path / "map.json").write_text(
        json.dumps(
            {
                "transformer.wte": "cpu",
                "transformer.wpe": "cpu",
                "transformer.h": "disk",
                "transformer.ln_f": "cpu",
                "lm_head": "cpu",
            }
        )
    )
    options = [str(model_folder), str(data_file), "--method", "logra", "--rank", "3", "--batch-positions", "99"]
    spread = ["--device-map", str(tmp_path / "map.json"), "--offload-folder", str(tmp_path / "off"), "--gradient-checkpointing"]
    assert main(["build", *options, "-o", str(tmp_path / "plain")]) == 0
    assert main(["build", *options, *spread, "-o", str(tmp_path / "spread")]) == 0
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "spread")
    half = ["--model-dtype", "bfloat16"]
    assert main(["build", *options, *half, "-o", str(tmp_path / "half")]) == 0
    task, _ = load_task(str(model_folder), placement=Placement(model_dtype="bfloat16"))
    assert {value.dtype for value in task.model.parameters()} == {torch.bfloat16}
    assert open_store(tmp_path / "half").blueprint.model == task.weights
    capsys.readouterr()
    assert main(["query", str(tmp_path / "half"), "--text", "a cat", "--json"]) == 0  # in the type of the build
    assert json.loads(capsys.readouterr().out)["num_examples"] == 12
    assert main(["query", str(tmp_path / "half"), "--text", "a cat", "--url", "http://127.0.0.1:1", "--device-map", "cpu"]) == 2
    assert "found --device-map with --url" in capsys.readouterr().err


def _page(ranks, folder):
    os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.count), "LOCAL_WORLD_SIZE": str(ranks.count)}
    os.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.S)
    (block,) = [block for block in blocks if "fully_shard" in block]
    exec(compile(block, "scale.md", "exec"), {"model": gpt2(), "tokenizer": FAKE, "texts": examples(9)})


def test_the_example_of_the_page_runs(processes, tmp_path):
    together(processes, _page, tmp_path)
    assert len(open_store(tmp_path / "store")) == 9


def test_torchrun_splits_the_model(processes, tmp_path):
    folder, data = save_language_model(tmp_path / "model"), tmp_path / "train.jsonl"
    data.write_text(
        "".join(json.dumps({"id": f"t{number}", "text": f"text {number} " + "é" * (number % 5)}) + "\n" for number in range(11))
    )
    options = [str(folder), str(data), "--method", "logra", "--rank", "3", "--rows-per-shard", "4", "--batch-positions", "40"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "whence"]
    command = [*torchrun, "build", *options, "-o", str(tmp_path / "split"), "--shard-model", "--gradient-checkpointing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 11 and "Warning" not in done.stderr
    assert main(["build", *options, "-o", str(tmp_path / "whole")]) == 0
    assert bytes_of(tmp_path / "split") == bytes_of(tmp_path / "whole")

    asked = ["query", str(tmp_path / "split"), "--text", "text 3", "--json"]
    first, second = together(processes, _command, tmp_path, [*asked, "--shard-model"])
    assert second == "" and json.loads(first) == json.loads(_command(Ranks(), tmp_path, asked))
    fit = ["curvature", str(folder), str(data), "-o", str(tmp_path / "factors"), "--shard-model"]
    first, second = together(processes, _command, tmp_path, fit)
    assert second == "" and json.loads(first)["fitted"].endswith("11 examples")

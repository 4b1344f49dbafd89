"""Recording the ways in which people train: skipped steps, compiled models, adapters, several processes, processes that are killed."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import whence
from tests.pages import run_blocks
from tests.settings import QUIET
from tests.test_record import MAKERS, batch_of, problem, step
from whence.errors import BadInput, StoreCorrupt, StoreMismatch, Unsupported


def record_of(folder):
    """Everything a run is, but for the bytes of files that its parts were written to."""
    run = whence.runs.open_run(folder)
    return run.log, [(kept["step"], kept["sha256"]) for kept in run.record["checkpoints"]], run.record["settings"]


def skipping_run(folder, *, fused, overflows=()):
    """Float32 with a scaler, whose gradients overflow at some steps."""
    model, inputs, labels = problem()
    model, inputs = model.float(), inputs.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    with whence.Recorder(folder, model, optimizer, every=2, scaler=scaler) as run:
        for number in range(6):
            for half in batch_of(number).split(3):
                run.batch(half)
                loss = nn.functional.cross_entropy(model(inputs[half]), labels[half]) / 2
                scaler.scale(loss * (float("inf") if number in overflows else 1.0)).backward()
            scaler.unscale_(optimizer)
            run.clip(0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return run


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_not_recorded(tmp_path, fused):
    run = skipping_run(tmp_path, fused=fused, overflows=(0, 3))
    assert run.steps == 4
    found = whence.runs.open_run(tmp_path)
    assert [[found.ids[one] for one in members] for members in found.log.members] == [
        [str(one) for one in batch_of(number).tolist()] for number in (1, 2, 4, 5)
    ]
    assert found.checkpoints == (0, 2, 4) and found.record["skipped"] == 2
    assert all(0 < factor < 1 for factor in found.log.factors)  # an overflow's clipping is forgotten with it
    assert found.record["settings"][0]["optimizer"] == "SGD" and len(found.record["settings"]) == 1


def test_compiled_models_are_kept_under_their_own_names(tmp_path):
    for name, wrap in (
        ("whole", lambda model: torch.compile(model, backend="eager")),
        ("layer", lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:])),
    ):
        model, inputs, labels = problem()
        wrapped = wrap(model)
        assert any("_orig_mod" in one for one, _ in wrapped.named_parameters())
        optimizer = MAKERS["adamw"](wrapped.parameters())
        with whence.Recorder(tmp_path / name, wrapped, optimizer, every=2) as run:
            for number in range(3):
                run.batch(batch_of(number))
                step(wrapped, optimizer, inputs, labels, batch_of(number))
        plain, _, _ = problem()
        optimizer = MAKERS["adamw"](plain.parameters())
        with whence.Recorder(tmp_path / f"{name}-plain", plain, optimizer, every=2) as run:
            for number in range(3):
                run.batch(batch_of(number))
                step(plain, optimizer, inputs, labels, batch_of(number))
        assert record_of(tmp_path / name) == record_of(tmp_path / f"{name}-plain")
        task = whence.Classification(model)
        train = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
        table = whence.attribute(task, train, train, method=whence.Source(run=tmp_path / name), runtime=QUIET)
        assert table.scores.shape == (24, 24)


class Adapted(nn.Module):
    """A frozen layer with a low-rank one beside it, as LoRA has it."""

    def __init__(self, base, rank=1):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False).to(base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False).to(base.weight.dtype)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def adapted(width=200):
    torch.manual_seed(0)
    return nn.Sequential(
        Adapted(nn.Linear(4, width)), nn.Tanh(), Adapted(nn.Linear(width, width)), Adapted(nn.Linear(width, 3))
    )


def lora_run(folder, *, model=None, steps=8, kill_at=None):
    model = model or adapted()
    _, inputs, labels = problem()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    with whence.Recorder(folder, model, optimizer, every=2) as run:
        for number in range(run.restore(), steps):
            if number == kill_at:
                raise KeyboardInterrupt
            run.batch(batch_of(number))
            step(model, optimizer, inputs.float(), labels, batch_of(number))
    return model


def test_frozen_weights_are_written_once(tmp_path):
    model = lora_run(tmp_path / "run")
    run = whence.runs.open_run(tmp_path / "run")
    sizes = {kept["step"]: (tmp_path / "run" / kept["file"]).stat().st_size for kept in run.record["checkpoints"]}
    frozen = sum(4 * one.numel() for one in model.parameters() if not one.requires_grad)
    trained = sum(4 * one.numel() for one in model.parameters() if one.requires_grad)
    assert frozen > 40 * trained
    assert all(size < 3 * trained + 8192 for step, size in sizes.items() if step < 8)
    assert frozen < sizes[8] < frozen + 3 * trained + 12288
    assert (tmp_path / "run" / "final-000000008.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoint-000000008.safetensors").exists()
    assert all(torch.equal(run.tensors(8)[f"model.{name}"], value) for name, value in model.named_parameters())

    task = whence.Classification(model)
    _, inputs, labels = problem()
    train = task.prepare(list(zip(inputs.float(), labels.tolist(), strict=True)))
    table = whence.attribute(task, train, train, method=whence.Source(run=tmp_path / "run"), runtime=QUIET)
    assert bool(table.scores.any()) and bool(torch.isfinite(table.scores).all())

    with pytest.raises(KeyboardInterrupt):
        lora_run(tmp_path / "cut", kill_at=5)
    other = adapted()
    with torch.no_grad():
        other[0].base.weight += 1
    with pytest.raises(StoreMismatch, match="found a model whose frozen weights are not those that the run began with; needed"):
        lora_run(tmp_path / "cut", model=other)
    lora_run(tmp_path / "cut")
    assert record_of(tmp_path / "cut") == record_of(tmp_path / "run")


def test_a_run_may_be_said_to_be_finished_before_its_end(tmp_path):
    model = adapted(5)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)
    _, inputs, labels = problem()
    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        run.batch(batch_of(0))
        step(model, optimizer, inputs.float(), labels, batch_of(0))
        run.checkpoint(finished=True)
    found = whence.runs.open_run(tmp_path)
    assert found.checkpoints == (0, 1)
    assert all(torch.equal(found.tensors(1)[f"model.{name}"], value) for name, value in model.named_parameters())


def test_frozen_weights_that_move_are_told(tmp_path):
    model = adapted(5)
    _, inputs, labels = problem()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)
    with (
        pytest.raises(Unsupported, match=r"found '0.base.weight', frozen when the recorder was made, changed without the opt"),
        whence.Recorder(tmp_path / "a", model, optimizer, every=2) as run,
    ):
        for number in range(2):
            run.batch(batch_of(number))
            step(model, optimizer, inputs.float(), labels, batch_of(number))
            with torch.no_grad():
                model[0].base.weight.mul_(0.99)
    with whence.Recorder(tmp_path / "b", model, optimizer, every=2) as run:
        optimizer.add_param_group({"params": [model[0].base.weight.requires_grad_()]})
        run.batch([0])
        with pytest.raises(Unsupported, match="found an optimizer that steps '0.base.weight', which was frozen when"):
            step(model, optimizer, inputs.float(), labels, [0])


def parallel_run(folder, *, steps=6, kill_at=None, wrapped=True):
    """One of two processes, each with half of every batch."""
    model, inputs, labels = problem()
    rank = dist.get_rank()
    wrapped = nn.parallel.DistributedDataParallel(model) if wrapped else model
    optimizer = MAKERS["momentum"](model.parameters())
    with whence.Recorder(folder, wrapped, optimizer, every=2) as run:
        for number in range(run.restore(), steps):
            if number == kill_at:
                raise KeyboardInterrupt
            mine = batch_of(number).split(3)[rank]
            run.batch(mine)
            step(wrapped, optimizer, inputs, labels, mine)


IS_SHARDING = hasattr(torch.distributed.fsdp, "fully_shard")  # from PyTorch 2.6


def process(rank, place, results):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    told = []
    try:
        parallel_run(place / "whole")
        try:
            parallel_run(place / "cut", kill_at=5)
        except KeyboardInterrupt:
            told.append("killed")
        parallel_run(place / "cut")
        try:
            parallel_run(place / "bare", wrapped=False)
        except Unsupported as error:
            told.append(str(error))
        if IS_SHARDING:
            sharded = problem()[0]
            torch.distributed.fsdp.fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
            try:
                whence.Recorder(place / "sharded", sharded, MAKERS["momentum"](sharded.parameters()), every=2)
            except Unsupported as error:
                told.append(str(error))
    finally:
        results.put((rank, told))
        dist.destroy_process_group()


def test_processes_record_their_own_examples(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=process, args=(rank, tmp_path, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for rank in range(2):
        assert told[rank][0] == "killed"
        assert told[rank][1].startswith("found 2 processes and a Sequential; needed a model in DistributedDataParallel")
        assert not IS_SHARDING or told[rank][2].startswith(
            "found a model that fully_shard split over processes; needed whole weights"
        )

    model, inputs, labels = problem()
    optimizer = MAKERS["momentum"](model.parameters())
    with whence.Recorder(tmp_path / "alone", model, optimizer, every=2) as run:
        for number in range(6):
            run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))
    alone, whole, cut = (whence.runs.open_run(tmp_path / name) for name in ("alone", "whole", "cut"))
    for found in (whole, cut):
        assert sum(found.log.weights, []) == pytest.approx(sum(alone.log.weights, []))
        assert found.log.rates == alone.log.rates
        assert found.checkpoints == alone.checkpoints
        for mine, theirs in zip(alone.log.members, found.log.members, strict=True):
            assert [alone.ids[one] for one in mine] == [found.ids[one] for one in theirs]
        for name, value in alone.tensors(6).items():
            torch.testing.assert_close(found.tensors(6)[name], value, rtol=1e-12, atol=1e-12)

    with pytest.raises(StoreMismatch, match=r"found a run of 2 process\(es\) in .*; needed one of 1"):
        record = json.loads((tmp_path / "cut" / "run.json").read_text())
        del record["seal"]
        (tmp_path / "cut" / "run.json").write_text(json.dumps({**record, "finished": False}))
        whence.Recorder(tmp_path / "cut", model, optimizer, every=2).__enter__()
    place = tmp_path / "whole" / "rank-00001"
    log = json.loads((place / "run.json").read_text())
    del log["seal"]
    (place / "run.json").write_text(json.dumps({**log, "logs": log["logs"][:-1], "steps": log["logs"][-2]["stop"]}))
    with pytest.raises(StoreCorrupt, match="found 4 steps in .*rank-00001 of a run of 6; needed as many"):
        whence.runs.open_run(tmp_path / "whole")
    (place / log["logs"][0]["file"]).write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="found a damaged file .*rank-00001.*its checksum is another"):
        whence.runs.open_run(tmp_path / "whole")


def slow_run(folder, progress=None):
    """60 steps of some milliseconds, from wherever the folder stopped."""
    torch.set_num_threads(1)
    model, inputs, labels = problem()
    optimizer = MAKERS["adamw"](model.parameters())
    with whence.Recorder(folder, model, optimizer, every=4, seed=1) as run:
        for number in range(run.restore(), 60):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / 60)
            run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))
            if progress is not None:
                progress.value = number
                time.sleep(0.002)


def test_a_killed_process_goes_on_to_the_same_record(tmp_path):
    """SIGKILL at random moments, in the middle of writing too."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    chance = random.Random(seed)
    slow_run(tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    progress = context.Value("i", -1)
    kills = 0
    for _ in range(200):
        until = progress.value + chance.randint(1, 20)
        worker = context.Process(target=slow_run, args=(tmp_path / "cut", progress))
        worker.start()
        while worker.is_alive() and progress.value < until:
            time.sleep(0.0005)
        worker.join(chance.uniform(0, 0.01))
        if not worker.is_alive():
            break
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        kills += 1
        record = tmp_path / "cut" / "run.json"
        if record.exists() and json.loads(record.read_text("utf-8"))["finished"]:  # killed between its last word and its end
            break
    assert kills > 0
    assert record_of(tmp_path / "cut") == record_of(tmp_path / "whole")


def test_what_a_run_goes_on_from_has_to_be_its_own(tmp_path):
    def again(data=None):
        model, inputs, labels = problem()
        optimizer = MAKERS["momentum"](model.parameters())
        with whence.Recorder(tmp_path, model, optimizer, every=2, data=data) as run:
            for number in range(run.restore(), 6):
                if number == 5:
                    raise KeyboardInterrupt
                run.batch(batch_of(number))
                step(model, optimizer, inputs, labels, batch_of(number))

    with pytest.raises(KeyboardInterrupt):
        again("first")
    with pytest.raises(StoreMismatch, match="found a run of other training data in .*; needed examples with the ids"):
        again("second")
    kept = tmp_path / "checkpoint-000000004.safetensors"
    whole, other = kept.read_bytes(), (tmp_path / "checkpoint-000000002.safetensors").read_bytes()
    for content in (None, whole[:-1], other):
        kept.unlink(missing_ok=True)
        if content is not None:
            kept.write_bytes(content)
        with pytest.raises(StoreCorrupt, match="found a damaged file .*checkpoint-000000004.safetensors .*; needed the bytes"):
            again("first")
    kept.write_bytes(whole)
    with pytest.raises(KeyboardInterrupt):
        again("first")
    (tmp_path / "checkpoint-000000000.safetensors").unlink()
    with pytest.raises((StoreCorrupt, BadInput), match="found a damaged file .*checkpoint-000000000.safetensors"):
        again("first")


def test_the_page_runs(tmp_path, monkeypatch):
    """The python blocks of docs/recording.md, one after the other; the trainers' lines are run by their own tests."""
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/recording.md", 2)
    assert names["table"].scores.shape == (5, 60) and len(names["store"]) == 60

"""Banks: subsets, retraining with a kill in the middle, files, and what others made."""

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from whence.errors import BadInput, UnknownOption
from whence.evaluate import (
    Bank,
    BankConfig,
    CommandTrain,
    FileTrain,
    Retraining,
    Run,
    as_reported,
    finished_bank,
    import_bank,
    import_run_lines,
    leave_k_out,
    leave_one_out,
    make_bank,
    noise_ceiling,
    open_bank,
    random_subsets,
    read_array,
    save_bank,
)
from whence.store import write_record

VALUES = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Additive:
    """Training whose outcome is a sum over what was kept, plus noise of the seed."""

    noise: float = 0.0

    def __call__(self, keep, seed):
        generator = torch.Generator().manual_seed(int(seed) * 1000 + int(keep.long() @ torch.arange(len(keep))))
        return VALUES[keep].sum(0) + self.noise * torch.randn(3, generator=generator, dtype=torch.float64)


def same(values):
    return values


def made(folder, masks, **options):
    retraining = Retraining(
        seeds=options.pop("seeds", (0, 1)), folder=folder, fingerprint="f", workers=options.pop("workers", 1), quiet=True
    )
    return make_bank(Additive(), same, masks, retraining, BankConfig(**{"values": "measurement", **options}))


def assert_equal(a, b):
    assert torch.equal(a.masks_MN, b.masks_MN) and torch.equal(a.values_MSQ, b.values_MSQ)
    assert (a.seeds, a.train_ids, a.query_ids, a.unit, dict(a.facts)) == (
        b.seeds,
        b.train_ids,
        b.query_ids,
        b.unit,
        dict(b.facts),
    )
    assert (a.full_SQ is None) == (b.full_SQ is None) and (a.full_SQ is None or torch.equal(a.full_SQ, b.full_SQ))


def test_subsets_have_their_size_and_grow():
    masks = random_subsets(10, 6, fraction=0.3, seed=1)
    assert masks.shape == (6, 10) and (masks.sum(1) == 3).all()
    assert torch.equal(random_subsets(10, 9, fraction=0.3, seed=1)[:6], masks)
    assert not torch.equal(random_subsets(10, 6, fraction=0.3, seed=2), masks)
    assert len({tuple(row.tolist()) for row in random_subsets(40, 20)}) == 20
    assert (leave_k_out(10, 2, 5).sum(1) == 8).all()
    assert torch.equal(leave_one_out(3), ~torch.eye(3, dtype=torch.bool))
    assert torch.equal(leave_one_out(4, [2]), torch.tensor([[True, True, False, True]]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random_subsets(10, 5, fraction=0.0),
        lambda: random_subsets(10, 5, fraction=1.0),
        lambda: random_subsets(10, 0),
        lambda: leave_k_out(4, 4, 2),
    ],
)
def test_subsets_that_say_nothing_are_refused(draw):
    with pytest.raises(BadInput, match="keep some examples and leave some out"):
        draw()


def test_leaving_out_what_is_not_there_is_refused():
    with pytest.raises(BadInput, match="indices from 0 to 3"):
        leave_one_out(4, [4])


def test_a_bank_holds_what_was_measured_and_survives_the_disk(tmp_path):
    masks = random_subsets(12, 5)
    bank = made(tmp_path, masks, train_ids=[f"t{n}" for n in range(12)], query_ids=["a", "b", "c"], unit="points")
    expected = torch.stack([VALUES[mask].sum(0) for mask in masks])
    for seed in range(2):
        torch.testing.assert_close(bank.values_MSQ[:, seed], expected)
    torch.testing.assert_close(bank.full_SQ[0], VALUES.sum(0))
    torch.testing.assert_close(bank.actual_MQ, expected)
    assert_equal(open_bank(tmp_path), bank)
    part = bank.of_queries(["c", "a"])
    torch.testing.assert_close(part.actual_MQ, expected[:, [2, 0]])
    assert part.full_SQ.shape == (2, 2) and part.query_ids == ("c", "a")
    with pytest.raises(BadInput, match="1 queries that the bank has no measurements of, such as 'x'"):
        bank.of_queries(["x"])


def test_losses_are_negated(tmp_path):
    masks = random_subsets(12, 3)
    bank = made(tmp_path / "a", masks)
    losses = made(tmp_path / "b", masks, values="loss")
    assert torch.equal(losses.values_MSQ, -bank.values_MSQ) and torch.equal(losses.full_SQ, -bank.full_SQ)


def test_a_bank_grows_by_the_new_runs_only(tmp_path):
    made(tmp_path, random_subsets(12, 4), seeds=(0,))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(before) == 5  # four subsets and everything
    made(tmp_path, random_subsets(12, 6), seeds=(0, 1))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(after) == 14 and all(after[path] == moment for path, moment in before.items())


def test_the_finished_part_of_a_bank_is_where_most_runs_are(tmp_path):
    masks, config = random_subsets(12, 6), BankConfig(values="measurement", unit="points")

    def finished():
        retraining = Retraining(seeds=(0, 1), folder=tmp_path, fingerprint="f")
        return finished_bank(masks, retraining, config)

    with pytest.raises(BadInput, match="0 of 6 subsets retrained"):
        finished()
    one_seed = made(tmp_path, masks[:5], seeds=(0,), unit="points")
    assert_equal(finished(), one_seed)
    both = made(tmp_path, masks[:5], seeds=(0, 1), unit="points")
    assert_equal(finished(), both)
    # Without one half's second run: four halves twice are more than five once.
    lost = Run(tuple(torch.nonzero(~masks[1]).flatten().tolist()), 1)
    (tmp_path / "runs" / f"{lost.key(12, 'f')}.json").unlink()
    part = finished()
    assert torch.equal(part.masks_MN, masks[[0, 2, 3, 4]]) and torch.equal(part.values_MSQ, both.values_MSQ[[0, 2, 3, 4]])
    everything = Run((), 1)
    (tmp_path / "runs" / f"{everything.key(12, 'f')}.json").unlink()
    assert finished().full_SQ is None


SLOW = """
import time, torch
def retrain(keep, seed):
    time.sleep(0.15)
    return [float(keep.sum()) + seed, float(keep[0])]
"""


def test_a_kill_loses_the_runs_in_flight_only(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    bank = tmp_path / "bank"
    words = [sys.executable, "-m", "whence", "bank", "--train", f"{script}:retrain", "--examples", "8", "--subsets", "10"]
    words += ["--seeds", "1", "--values", "measurement", "-o", str(bank)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((bank / "runs").glob("*.json")) if (bank / "runs").is_dir() else []) < 4:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (bank / "runs").glob("*.json")}
    assert 4 <= len(kept) < 11, "the kill came too late to show anything"
    with pytest.raises(BadInput, match="an unfinished bank"):
        open_bank(bank)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "subsets 10, seeds 1, queries 2, examples 8" in done.stdout
    assert all((bank / "runs" / name).stat().st_mtime_ns == moment for name, moment in kept.items())
    whole = open_bank(bank)
    assert torch.equal(whole.values_MSQ[:, 0, 0], whole.masks_MN.sum(1).double())


def without_seal(content):
    """A record whose author seals it again."""
    return {name: value for name, value in content.items() if name != "seal"}


def test_bank_files_are_checked(tmp_path):
    with pytest.raises(BadInput, match="no bank in"):
        open_bank(tmp_path / "nowhere")
    made(tmp_path, random_subsets(12, 3))
    values = (tmp_path / "values.npy").read_bytes()
    (tmp_path / "values.npy").write_bytes(values[:-9])
    with pytest.raises(BadInput, match="which cannot be read"):
        open_bank(tmp_path)
    np.save(tmp_path / "values.npy", np.zeros((2, 2, 3)))
    with pytest.raises(BadInput, match=r"boolean masks \(subsets, examples\) and values"):
        open_bank(tmp_path)
    content = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps({**content, "format": "whence bank 99"}))
    with pytest.raises(BadInput, match="it is not what was written"):
        open_bank(tmp_path)
    write_record(tmp_path / "bank.json", {**without_seal(content), "format": "whence bank 99"})
    with pytest.raises(BadInput, match="format 'whence bank 99'"):
        open_bank(tmp_path)


def test_seeds_must_differ_and_values_be_finite(tmp_path):
    with pytest.raises(BadInput, match="all different"):
        made(tmp_path, random_subsets(12, 3), seeds=(1, 1))
    with pytest.raises(BadInput, match="NaN or infinite"):
        Bank(torch.ones(1, 2, dtype=torch.bool), torch.full((1, 1, 1), torch.nan), (0,), ("a", "b"), ("q",), "")


def test_what_others_keep_is_imported(tmp_path):
    masks = random_subsets(12, 5)
    outcomes = torch.stack([VALUES[mask].sum(0) for mask in masks])
    expected = Bank(masks, outcomes[:, None], (0,), tuple(map(str, range(12))), ("0", "1", "2"), "", None, {"imported": True})
    # kronfluence and TRAK: masks of zeros and ones in any type, one row of outcomes per subset
    assert_equal(import_bank(masks.float(), outcomes, values="measurement"), expected)
    # dattri: indices of what was kept
    indices = torch.stack([torch.nonzero(mask).flatten() for mask in masks])
    assert_equal(import_bank(indices, outcomes, values="measurement", num_examples=12), expected)
    losses = import_bank(masks, -outcomes[:, None].expand(5, 4, 3), values="loss")
    assert losses.values_MSQ.shape == (5, 4, 3) and torch.equal(losses.actual_MQ, outcomes)
    save_bank(expected, tmp_path)
    assert_equal(open_bank(tmp_path), expected)
    with pytest.raises(BadInput, match="num_examples None"):
        import_bank(indices, outcomes, values="loss")
    with pytest.raises(BadInput, match="5 subsets and outcomes of shape"):
        import_bank(masks, outcomes.T, values="loss")


def test_arrays_are_read_from_every_format_and_never_unpickled(tmp_path):
    from safetensors.torch import save_file

    array = torch.arange(6.0).view(2, 3)
    np.save(tmp_path / "a.npy", array.numpy())
    np.savez(tmp_path / "a.npz", masks=array.numpy(), other=array.numpy())
    save_file({"masks": array}, tmp_path / "a.safetensors")
    torch.save(array, tmp_path / "a.pt")
    for file, name in (("a.npy", None), ("a.npz", "masks"), ("a.safetensors", None), ("a.pt", None)):
        assert torch.equal(read_array(tmp_path / file, name), array)
    with pytest.raises(BadInput, match="2 arrays in"):
        read_array(tmp_path / "a.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    torch.save({"code": Additive()}, tmp_path / "code.pt")
    for file in ("objects.npy", "code.pt", "missing.npy"):
        with pytest.raises(BadInput, match="which cannot be read"):
            read_array(tmp_path / file)


def test_a_command_trains(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\nkeep = json.load(open(sys.argv[1]))\n"
        "json.dump([len(keep) + 0.5, int(sys.argv[2])], open(sys.argv[3], 'w'))\n"
    )
    train = CommandTrain(f"{sys.executable} {script} {{keep}} {{seed}} {{result}}")
    assert as_reported(train(torch.tensor([True, False, True]), 7)).tolist() == [2.5, 7.0]
    with pytest.raises(BadInput, match=r"a command without \{result\}"):
        CommandTrain("python train.py {keep} {seed}")
    script.write_text("raise SystemExit('out of memory')")
    with pytest.raises(BadInput, match="exit status 1 .*out of memory"):
        train(torch.ones(3, dtype=torch.bool), 0)
    script.write_text("")
    with pytest.raises(BadInput, match="no list of numbers"):
        train(torch.ones(3, dtype=torch.bool), 0)


def test_a_function_in_a_file_trains(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("def retrain(keep, seed):\n    return [int(keep.sum()), seed]\n")
    assert FileTrain(f"{script}:retrain")(torch.tensor([True, False]), 3) == [1, 3]
    with pytest.raises(BadInput, match="no function 'other'"):
        FileTrain(f"{script}:other")(torch.tensor([True]), 0)


def test_a_finished_bank_is_not_replaced_by_another(tmp_path):
    made(tmp_path, random_subsets(12, 6))
    for masks, seeds in (
        (random_subsets(12, 4), (0, 1)),
        (random_subsets(12, 6, seed=9), (0, 1)),
        (random_subsets(12, 6), (0,)),
    ):
        with pytest.raises(BadInput, match="a finished bank of 6 subsets and 2 seeds"):
            made(tmp_path, masks, seeds=seeds)
    assert len(open_bank(tmp_path).masks_MN) == 6


def test_a_change_beside_the_training_file_is_noticed(tmp_path):
    (tmp_path / "beside.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "mine.py").write_text(
        "from beside import FACTOR\ndef retrain(keep, seed):\n    return [FACTOR * float(keep.sum())]\n"
    )
    words = [
        sys.executable,
        "-m",
        "whence",
        "bank",
        "--train",
        f"{tmp_path}/mine.py:retrain",
        "--examples",
        "6",
        "--subsets",
        "3",
    ]
    words += ["--seeds", "1", "--values", "measurement", "-o", str(tmp_path / "bank")]
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "beside.py").write_text("FACTOR = 10.0\n")
    subprocess.run(words, check=True, capture_output=True)
    assert open_bank(tmp_path / "bank").actual_MQ.flatten().tolist() == [30.0] * 3


def test_training_that_reports_nothing_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a training function that returned NoneType"):
        as_reported(None)
    with pytest.raises(BadInput, match="nosuchprogram, which cannot be run"):
        CommandTrain("nosuchprogram {keep} {seed} {result}")(torch.ones(3, dtype=torch.bool), 0)
    with pytest.raises(BadInput, match="the name 'train.py'; needed file.py:function"):
        FileTrain("train.py")(torch.ones(3, dtype=torch.bool), 0)
    with pytest.raises(UnknownOption, match="values='x'"):
        import_bank(random_subsets(12, 3), torch.zeros(3, 2), values="x")


def test_some_subsets_retrained_again_give_the_ceiling(tmp_path):
    masks = random_subsets(12, 6)
    bank = made(tmp_path / "a", masks, seeds=(0,))
    assert math.isnan(noise_ceiling(bank).reachable)
    again = made(tmp_path / "b", masks[[4, 1, 2]], seeds=(7,), full=False)
    both = bank.with_repeats(again)
    assert torch.equal(both.repeated.masks_MN, masks[[4, 1, 2]]) and both.repeated.seeds == (0, 7)
    assert torch.equal(both.repeated.values_MSQ[:, 0], bank.values_MSQ[[4, 1, 2], 0])
    noisy = replace(
        both, repeated=replace(both.repeated, values_MSQ=torch.tensor([[0.0, 1], [1, 0], [2, 2]])[:, :, None].expand(-1, -1, 3))
    )
    # Ranks 0 1 2 and 1 0 2 agree by a half; of one run a perfect prediction would reach its root.
    found = noise_ceiling(noisy.of_queries(["0", "2"]))
    assert (found.seed_to_seed, found.num_seeds, found.num_repeated) == (pytest.approx(0.5), 1, 3)
    assert found.reachable == pytest.approx(0.5**0.5)
    for wrong in (
        replace(again, seeds=(0,)),
        replace(again, query_ids=("x", "y", "z")),
        replace(again, masks_MN=~again.masks_MN),
    ):
        with pytest.raises(BadInput, match="retrained with other seeds"):
            bank.with_repeats(wrong)


def lines_file(folder, lines):
    path = folder / "runs.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


RUNS = [
    {"_meta": {"pool": [7, 8, 9]}},
    {"train_subset": [0, 2], "train_subset_global": [70, 90], "test_loss": [1.0, 2.5]},
    {"train_subset": [1], "train_subset_global": [80], "test_loss": [0.5, 3]},
    "\n",
    {"train_subset": [2, 1], "train_subset_global": [90, 80], "test_loss": [0.25, 4.0]},
]


def test_a_published_file_of_runs_is_the_bank_of_its_masks_and_losses(tmp_path):
    masks = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 1, 1]])
    losses = torch.tensor([[1.0, 2.5], [0.5, 3.0], [0.25, 4.0]])
    expected = import_bank(masks, losses, values="loss", train_ids=("70", "80", "90"))
    assert_equal(import_run_lines(lines_file(tmp_path, RUNS)), expected)
    plain = [{name: part for name, part in run.items() if "global" not in name} for run in RUNS if isinstance(run, dict)]
    found = import_run_lines(lines_file(tmp_path, plain), num_examples=5)
    assert found.train_ids == tuple("01234") and not found.masks_MN[:, 3:].any()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{}\n"], "line 1 is no run: no 'train_subset'"),
        (["no JSON\n"], "line 1 is no run"),
        ([RUNS[0]], "no runs in"),
        ([{"train_subset": [-1], "test_loss": [1.0]}], "one below 0"),
        ([{"train_subset": [0.5], "test_loss": [1.0]}], "line 1 is no run: train_subset"),
        ([RUNS[1], {"train_subset": [0], "test_loss": [1.0]}], "with 1 and 2 losses"),
        ([RUNS[1], {**RUNS[2], "train_subset": [0]}], "two names of example 0"),
        ([RUNS[1], RUNS[1]], "1 of 3 examples that no run"),
    ],
)
def test_a_line_that_is_no_run_is_told(lines, told, tmp_path):
    with pytest.raises(BadInput, match=told):
        import_run_lines(lines_file(tmp_path, lines))

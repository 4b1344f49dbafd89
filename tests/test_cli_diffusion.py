"""Diffusion on the command line: a pipeline's folder, images from files, and what a query asks about."""

import json

import numpy as np
import pytest
import torch

import whence
from tests.settings import QUIET
from whence.errors import BadInput
from whence.load import load_records, load_task

diffusers = pytest.importorskip("diffusers")

OPTIONS = ("--draws", 4, "--draws-at-once", 2, "--drop-condition", 0.25, "--null-label", 3, "--augment", "flip", "--min-snr", 5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pipeline, images of three classes as arrays, two queries, and a few images in files."""
    folder = tmp_path_factory.mktemp("diffusion")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder / "pipeline")
    images = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32)
    labels = np.arange(8) % 3
    np.savez(folder / "train.npz", image=images[:6], label=labels[:6], ids=[f"t{n}" for n in range(6)])
    np.savez(folder / "made.npz", image=images[6:], label=labels[6:], ids=["q0", "q1"])
    return folder


@pytest.fixture(scope="module")
def store(home):
    from whence.cli import main

    words = ["build", home / "pipeline", home / "train.npz", "-o", home / "store", "--task", "diffusion", *OPTIONS]
    assert main([str(word) for word in [*words, "--method", "logra", "--rank", 4]]) == 0
    return home / "store"


def task_of(home, **measured):
    """What the command line has to mean."""
    return whence.tasks.load_diffusion(
        home / "pipeline",
        noised=whence.tasks.Draws(draws=4, at_once=2, augment="flip", min_snr=5.0),
        guidance=whence.tasks.Guidance(drop=0.25, null_label=3, scale=measured.pop("scale", 1.0)),
        measured=whence.tasks.Measured(**measured),
    )


def test_a_store_is_asked_what_python_asks(home, store, run):
    train, made = (load_records(str(home / name)) for name in ("train.npz", "made.npz"))
    for words, task in (
        ((), task_of(home)),
        (("--query-draws", "own", "--guidance", 2), task_of(home, draws="own", scale=2.0)),
        (("--measure", "loss_at", "--time", 20), task_of(home, measure="loss_at", time=20)),
        (("--measure", "loss_at", "--time", 0), task_of(home, measure="loss_at", time=0)),
    ):
        found = json.loads(run("query", store, "--file", home / "made.npz", "-k", 6, "--json", *words))
        table = whence.score_table(whence.open_store(store), task, made, runtime=QUIET)
        for row, query in zip(table.scores, found["queries"], strict=True):
            scores = dict(zip(table.train_ids, row.tolist(), strict=True))
            hits = {hit["id"]: hit["score"] for side in ("proponents", "opponents") for hit in query[side]}
            assert hits and all(score == pytest.approx(scores[name], rel=1e-4) for name, score in hits.items())
        assert [note for note in found["notes"] if "queries" in note] == [*task.query_notes()]
    assert [record["id"] for record in train] == [f"t{n}" for n in range(6)]


def test_score_and_attribute_take_the_same_options(home, store, run):
    run("score", store, home / "made.npz", "-o", home / "scores", "--query-draws", "own")
    words = ["attribute", home / "pipeline", home / "train.npz", home / "made.npz", "-o", home / "exact", "--task", "diffusion"]
    printed = json.loads(run(*words, *OPTIONS, "--method", "grad-dot-exact", "--query-draws", "own"))
    assert any("of their own" in note for note in printed["notes"])
    task = task_of(home, draws="own")
    wanted = whence.attribute(
        task,
        load_records(str(home / "train.npz")),
        load_records(str(home / "made.npz")),
        method="grad-dot-exact",
        runtime=QUIET,
    )
    np.testing.assert_allclose(np.load(home / "exact" / "scores.npy"), wanted.scores.numpy(), rtol=1e-4, atol=1e-7)


def test_images_in_files_are_read_from_black_to_white(home, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    pil.fromarray(pixels).save(tmp_path / "one.png")
    task, _ = load_task(str(home / "pipeline"), kind="diffusion")
    (example,) = task.prepare(load_records(str(tmp_path))).examples
    np.testing.assert_allclose(example.fields["image"], pixels[None] / 255 * 2 - 1, atol=1e-6)
    assert example.image == str(tmp_path / "one.png")
    coloured = whence.Diffusion(torch.nn.Conv2d(3, 3, 1))
    assert coloured.prepare([{"image": tmp_path / "one.png"}]).examples[0].fields["image"].shape == (3, 8, 8)
    (tmp_path / "two.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"the image .*two.png, which cannot be opened"):
        task.prepare([{"image": tmp_path / "two.png"}])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--draws", 5, "--draws-at-once", 2], "found at_once=2 of 5 draws; needed a divisor"),
        (
            ["--drop-condition", 0.1],
            "guidance without what stands for no label; needed null_label; do this: pass Guidance(null_label=",
        ),
        (["--guidance", 3, "--null-condition", "there.npy"], "there.npy', which cannot be read"),
        (["--augment", "rotate"], "found augment='rotate'; needed 'flip'"),
        (["--measure", "loss_at"], "time=None with measure='loss_at'"),
        (["--max-length", 9], "found --max-length or --long for --task diffusion"),
        (["--beta", 0.1], "found --beta for --task diffusion; needed --task preference"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(words, text, home, run, tmp_path):
    words = ["build", home / "pipeline", home / "train.npz", "-o", tmp_path / "store", "--task", "diffusion", *words]
    said = run(*words, status=2)
    assert text in said and "Traceback" not in said


def test_options_of_diffusion_are_of_diffusion(run, home, store, model_folder, data_file, tmp_path):
    said = run("build", model_folder, data_file, "-o", tmp_path / "s", "--draws", 3, status=2)
    assert "found --draws for --task causal_lm; needed --task diffusion" in said
    run("build", model_folder, data_file, "-o", tmp_path / "texts", "--rank", 2)
    said = run("query", tmp_path / "texts", "--text", "a", "--guidance", 2, status=2)
    assert "found --guidance for a store of --task causal_lm; needed a store that was built with --task diffusion" in said


def test_an_augmentation_that_a_store_names_is_not_run(run, home, tmp_path):
    (tmp_path / "mine.py").write_text("def dimmed(image, generator):\n    return image * 0.5\n")
    words = ["build", home / "pipeline", home / "train.npz", "-o", tmp_path / "store", "--task", "diffusion", "--draws", 2]
    run(*words, "--augment", f"{tmp_path / 'mine.py'}:dimmed", "--method", "logra", "--rank", 2)
    said = run("query", tmp_path / "store", "--file", home / "made.npz", status=2)
    assert "Python code that would be run" in said and "--trust" in said
    run("query", tmp_path / "store", "--file", home / "made.npz", "--trust")


def test_files_of_images_are_held_to_their_arrays(tmp_path):
    for arrays, text in (
        ({"image": np.zeros((2, 1, 4, 4)), "caption": np.zeros(2)}, "an array caption; image goes with condition, ids, label"),
        ({"image": np.zeros((2, 1, 4, 4)), "label": np.zeros(3)}, "arrays of the lengths 2, 3"),
    ):
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(BadInput, match=text):
            load_records(str(tmp_path / "data.npz"))

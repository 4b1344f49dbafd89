"""Recording the Lightning Trainer: the same contents as a loop's, going on from its checkpoints, what is refused."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import whence
from tests.conftest import save_language_model
from tests.settings import QUIET
from tests.test_gradient_log import rows_of
from whence.cli import main
from whence.errors import BadInput, StoreMismatch, Unsupported
from whence.load import load_records, load_task

lightning = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings("ignore")


class Points(torch.utils.data.Dataset):
    def __init__(self, count=14):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        self.labels = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        return self.inputs[place], self.labels[place]


class Module(lightning.LightningModule):
    def __init__(self, optimizer="sgd"):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.kind = optimizer
        self.met = []

    def training_step(self, batch, batch_idx):
        self.met.append(batch[0].clone())
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        if self.kind == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (1 + number))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(workers=0, data=None, **options):
    generator = torch.Generator().manual_seed(5)
    return DataLoader(data or Points(), batch_size=3, shuffle=True, generator=generator, num_workers=workers, **options)


def trainer_of(tmp_path, *callbacks, **options):
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.3}
    return lightning.Trainer(
        default_root_dir=str(tmp_path), callbacks=list(callbacks), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, **{"enable_checkpointing": False, **settings, **options},
    )  # fmt: skip


def record(tmp_path, folder="run", module=None, data=None, workers=0, part="network", **options):
    lightning.seed_everything(3, verbose=False)
    module = module or Module()
    callback = whence.runs.record_lightning(tmp_path / folder, part=part, checkpoints=3)
    trainer_of(tmp_path, callback, **options).fit(module, loader(workers, data))
    return module


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_of_lightning_is_the_one_that_is_written(tmp_path, workers):
    """Recorded batches, weights, rates and factors, stepped by hand, end in the Trainer's weights; and recording moves none of them."""
    lightning.seed_everything(3, verbose=False)
    plain = Module()
    trainer_of(tmp_path).fit(plain, loader(workers))
    module = record(tmp_path, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))

    run, data = whence.runs.open_run(tmp_path / "run"), Points()
    assert run.steps == 6 and run.checkpoints == (0, 2, 4, 6) and run.record["seed"] == 3
    met = [torch.stack([data.inputs[int(run.ids[one])] for one in members]) for members in run.log.members]
    theirs = [torch.cat(module.met[start : start + 2]) for epoch in (0, 5) for start in (epoch, epoch + 2)]
    theirs = [*theirs[:2], module.met[4], *theirs[2:], module.met[9]]
    assert all(torch.equal(a, b) for a, b in zip(met, theirs, strict=True))
    assert any(factor < 1 for factor in run.log.factors)
    assert [rates[0] for rates in run.log.rates] == pytest.approx([0.3 / (1 + number) for number in range(6)])
    network = Module().network
    for members, weights, rates, factor in zip(run.log.members, run.log.weights, run.log.rates, run.log.factors, strict=True):
        network.zero_grad()
        places = [int(run.ids[one]) for one in members]
        losses = nn.functional.cross_entropy(network(data.inputs[places]), data.labels[places], reduction="none")
        (losses * torch.tensor(weights)).sum().backward()
        with torch.no_grad():
            for value in network.parameters():
                value -= rates[0] * factor * value.grad
    for value, wanted in zip(network.parameters(), module.network.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)  # the norm's 1e-6 is inside


def test_lightning_goes_on_where_it_stopped(tmp_path):
    def saved():
        return lightning.callbacks.ModelCheckpoint(dirpath=tmp_path / "own", every_n_epochs=1, save_top_k=-1)

    class Stopped(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 5:
                raise KeyError("killed")

    def fit(folder, *callbacks, ckpt_path=None, count=14):
        module = Module("adamw")
        data = DataLoader(Points(count), batch_size=3)
        callback = whence.runs.record_lightning(tmp_path / folder, part="network", every=2)
        trainer = trainer_of(tmp_path, callback, saved(), *callbacks, enable_checkpointing=True)
        trainer.fit(module, data, ckpt_path=ckpt_path)

    fit("whole")
    with pytest.raises(KeyError):
        fit("cut", Stopped())
    (own,) = (path for path in (tmp_path / "own").iterdir() if "step=3" in path.name and "-v" not in path.name)
    with pytest.raises(StoreMismatch, match="found a run of other training data in .*; needed examples with the ids"):
        fit("cut", ckpt_path=str(own), count=15)
    fit("cut", ckpt_path=str(own))
    first, second = whence.runs.open_run(tmp_path / "whole"), whence.runs.open_run(tmp_path / "cut")
    assert first.log == second.log
    for name, value in first.tensors(6).items():
        torch.testing.assert_close(second.tensors(6)[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_recorded", [False, True])
def test_gradients_are_logged_and_the_run_is_as_it_would_be(tmp_path, is_recorded):
    """With a learning rate the weights are those without a log; without one the store is the one that is built."""
    plain = Module()
    lightning.seed_everything(3, verbose=False)
    trainer_of(tmp_path).fit(plain, loader())
    module, data = Module(), Points()
    task = whence.Classification(module.network)
    train = [(data.inputs[row], int(data.labels[row])) for row in range(len(data))]
    config = whence.BuildConfig(method="logra", rank=4, dtype="float32", batch_positions=64)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=config, quiet=True)
    callbacks = [whence.runs.log_lightning(log)]
    if is_recorded:
        callbacks.insert(0, whence.runs.record_lightning(tmp_path / "run", part="network", checkpoints=3))
    lightning.seed_everything(3, verbose=False)
    trainer_of(tmp_path, *callbacks).fit(module, loader())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    store = log.finish()
    assert len(store) == len(data)

    still, rate = Module(), {"max_epochs": 1, "gradient_clip_val": None}
    still.configure_optimizers = lambda: torch.optim.SGD(still.parameters(), lr=0.0)
    task = whence.Classification(still.network)
    log = whence.pipeline.GradientLog(tmp_path / "still", task, train, config=config, quiet=True)
    trainer_of(tmp_path, whence.runs.log_lightning(log), **rate).fit(still, loader())
    logged, built = rows_of(log.finish()), rows_of(whence.build(task, train, tmp_path / "built", config=config, runtime=QUIET))
    for name in logged:
        torch.testing.assert_close(logged[name], built[name], rtol=1e-4, atol=1e-5)


def test_what_of_lightning_cannot_be_logged(tmp_path):
    module, data = Module(), Points()
    task = whence.Classification(module.network)
    train = [(data.inputs[row], int(data.labels[row])) for row in range(len(data) - 1)]
    config = whence.BuildConfig(method="logra", rank=4)
    log = whence.pipeline.GradientLog(tmp_path / "store", task, train, config=config, quiet=True)
    with pytest.raises(BadInput, match="a module that does not hold the log's model"):
        trainer_of(tmp_path, whence.runs.log_lightning(log)).fit(Module(), loader())
    with pytest.raises(BadInput, match="a training example '13' of the Trainer that the log does not have"):
        trainer_of(tmp_path, whence.runs.log_lightning(log)).fit(module, loader())
    module.automatic_optimization = False
    with pytest.raises(Unsupported, match="manual optimization; needed one device"):
        trainer_of(tmp_path, whence.runs.log_lightning(log), gradient_clip_val=None, accumulate_grad_batches=1).fit(
            module, loader()
        )


def test_what_of_lightning_cannot_be_recorded(tmp_path):
    class Own(Module):
        def configure_gradient_clipping(self, *args, **kwargs):
            pass

    manual = Module()
    manual.automatic_optimization = False
    swa = lightning.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    for module, callbacks, options, told in (
        (manual, (), {"accumulate_grad_batches": 1, "gradient_clip_val": None}, "a module that steps its optimizer itself"),
        (Own(), (), {}, "a module that clips gradients in its own way"),
        (Module(), (), {"gradient_clip_algorithm": "value"}, "gradients that are clipped by value"),
        (Module(), (), {"overfit_batches": 1}, "a Trainer with overfit_batches"),
        (Module(), (swa,), {}, "a Trainer with StochasticWeightAveraging"),
    ):
        trainer = trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run"), *callbacks, **options)
        with pytest.raises(Unsupported, match=f"found {told}.*; do this: train so, or record a loop"):
            trainer.fit(module, loader())
    trainer = trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run"))
    trainer.strategy.precision_plugin.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(Unsupported, match="found a Trainer with precision=32-true, whose steps may be skipped; needed float32"):
        trainer.fit(Module(), loader())
    trainer = trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run"))
    type(trainer).world_size, held = property(lambda self: 2), type(trainer).world_size
    try:
        with pytest.raises(Unsupported, match="found a Trainer on 2 devices; needed one device"):
            whence.runs.record_lightning(tmp_path / "run").setup(trainer, Module(), "fit")
    finally:
        type(trainer).world_size = held
    with pytest.raises(Unsupported, match="found training data in a list; needed one torch DataLoader"):
        trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run")).fit(Module(), [loader(), loader()])
    with pytest.raises(Unsupported, match="found a DataLoader that does not plan its batches; needed a dataset of known"):
        trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run")).fit(
            Module(), DataLoader(Points(), batch_size=None)
        )
    with pytest.raises(BadInput, match="found a run of a length that is not known; needed the steps between checkpoints"):
        trainer_of(tmp_path, whence.runs.record_lightning(tmp_path / "run"), max_epochs=-1).fit(Module(), loader())
    with pytest.raises(Unsupported, match="found a batch that the DataLoader's sampler did not plan; needed batches in the"):
        whence.runs.record_lightning(tmp_path / "run").on_train_batch_start(None, None, None, 0)


def test_without_lightning_the_way_out_is_told(tmp_path, monkeypatch):
    from whence.recording import lightning_batches as place

    monkeypatch.setattr(place, "_PACKAGES", ("no_such_package",))
    with pytest.raises(BadInput, match="found no Lightning; needed pytorch-lightning; do this: pip install"):
        whence.runs.record_lightning(tmp_path)


TEXTS = [f"{animal} {verb}" for animal in ("a cat", "the dog", "one bird") for verb in ("sat", "ran off", "sleeps", "é")]


class Language(lightning.LightningModule):
    def __init__(self, folder):
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def encoded(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [{"id": f"t{number}", "input_ids": tokenizer(text).input_ids} for number, text in enumerate(TEXTS)]


def collate(examples):
    rows = [torch.tensor(example["input_ids"]) for example in examples]
    mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "labels": ids.masked_fill(~mask, -100), "attention_mask": mask.long()}


def through_lightning(folder, run):
    module = Language(folder)
    callback = whence.runs.record_lightning(
        run, part="model", checkpoints=2, divided_by=lambda batch: float(batch["labels"][:, 1:].ne(-100).sum())
    )
    data = DataLoader(encoded(folder), batch_size=4, shuffle=True, collate_fn=collate)
    trainer_of(run.parent, callback, max_epochs=3, accumulate_grad_batches=1).fit(module, data)
    return module.model


def through_trainer(folder, run):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = TrainingArguments(
        output_dir=str(run.parent / "trainer"), per_device_train_batch_size=4, num_train_epochs=3, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=encoded(folder), data_collator=collate)
    whence.runs.record_trainer(trainer, run, checkpoints=2)
    trainer.train()
    return model


@pytest.mark.parametrize("train", [through_lightning, through_trainer])
def test_a_run_is_attributed_from_the_command_line(tmp_path, train, capsys):
    folder = save_language_model(tmp_path / "model")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"id": f"t{number}", "text": text}) + "\n" for number, text in enumerate(TEXTS)))
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "q", "text": TEXTS[5]}) + "\n")
    model = train(folder, tmp_path / "run")
    model.save_pretrained(folder)
    arguments = [str(folder), str(data), str(asked), "-o", str(tmp_path / "table")]
    source = ["--method", "source", "--run", str(tmp_path / "run")]
    assert main(["attribute", *arguments, *source]) == 0, capsys.readouterr().err
    scores = torch.from_numpy(np.load(tmp_path / "table" / "scores.npy"))
    run = whence.runs.open_run(tmp_path / "run")
    assert sorted(run.ids) == sorted(f"t{number}" for number in range(12)) and run.steps == 9
    task, _ = load_task(str(folder))
    train_set, queries = (task.prepare(load_records(str(path))) for path in (data, asked))
    table = whence.attribute(task, train_set, queries, method=whence.Source(run=tmp_path / "run"), runtime=QUIET)
    torch.testing.assert_close(scores, table.scores.to(scores), rtol=1e-4, atol=1e-4)
    assert scores[0, 5] > scores.median()

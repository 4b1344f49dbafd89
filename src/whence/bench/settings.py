"""The bench's settings: a model, its training data, queries, and how to train it again.

Axes: N training examples, Q queries, M subsets.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.bench.data import diabetes, digits, dimmed, labelled_texts
from whence.bench.denoiser import DenoiserLosses, DenoiserRetrain, DenoiserSettings, denoising, new_denoiser
from whence.bench.language import TEXT, TEXT_LONG, Language, from_scratch, tuned
from whence.bench.small import READER_LENGTH, READER_WORDS, SmallLosses, SmallRetrain, SmallSettings, new_network
from whence.data import Dataset
from whence.demo.model import new_model
from whence.demo.train import QueryLosses, Retrain, train
from whence.errors import BadInput, UnknownOption
from whence.evaluate import Bank, BankConfig, Retraining, finished_bank, flip_labels, make_bank, random_subsets, reformatted
from whence.pipeline import sample_images
from whence.records import Recipe
from whence.store import read_json, read_record, read_tensors, write_json, write_tensors
from whence.tasks import AbstractTask, CausalLM, Classification, Regression

__all__ = ["ONLY_NAMED", "SETTINGS", "Setting", "language_setting", "load_setting", "prepare"]

_FLIPPED = 0.2
_DENOISED, _GENERATED = 100, 48


@dataclass(frozen=True)
class Setting:
    """One row of the bench.

    Args:
        name: Its name in SETTINGS.
        train: Training examples.
        queries: Queries, which no model is trained on.
        task_of: From a model and its recipe to the task.
        fit: From a seed to a model trained on everything, and the run's recipe.
        empty: A model of the right shape, to load weights into.
        retrain: What a bank trains with.
        measure: What a bank measures, losses.
        subsets: Random halves in the bank.
        seeds: Training runs per half.
        folder: Where models and bank are kept.
        repeated: Of the halves, how many are trained on with one more seed, for the noise ceiling where `seeds` is 1.
        flipped_N: For noisy labels: which ones are wrong.
        other_format: The queries with the same content in another format, under the same ids, and what format; None where there is none.
    """

    name: str
    train: Dataset
    queries: Dataset
    task_of: Callable[[nn.Module, Recipe], AbstractTask]
    fit: Callable[[int], tuple[nn.Module, Recipe]]
    empty: Callable[[], nn.Module]
    retrain: Any
    measure: Any
    subsets: int
    seeds: int
    folder: Path
    repeated: int = 0
    flipped_N: Tensor | None = field(default=None, repr=False)
    other_format: tuple[str, Dataset] | None = field(default=None, repr=False)

    @property
    def in_other_format(self) -> "Setting":
        """The same setting, whose queries are in the other format."""
        assert self.other_format is not None
        return replace(self, queries=self.other_format[1], other_format=None)

    @property
    def task(self) -> AbstractTask:
        """The task of the first model."""
        return self.member(0)

    def member(self, seed: int) -> AbstractTask:
        """The model trained on everything with a seed, as a task; trained at the first call and kept in the folder."""
        weights = self.folder / "models" / f"{self.retrain.fingerprint[:16]}-{seed}.safetensors"
        recipe = weights.with_suffix(".json")
        if not recipe.exists():
            weights.parent.mkdir(parents=True, exist_ok=True)
            model, run_recipe = self.fit(seed)
            parameters = {name: value.detach().contiguous() for name, value in model.named_parameters()}
            write_tensors(weights, parameters)
            write_json(recipe, asdict(run_recipe))
        model = self.empty()
        model.load_state_dict(read_tensors(weights), strict=False)
        return self.task_of(model.eval(), read_record(Recipe, recipe))

    def bank(self, *, workers: int = 1, only_finished: bool = False, quiet: bool = False) -> Bank:
        """Random halves retrained; only what is missing in the folder is done.

        Args:
            workers: Training runs at a time.
            only_finished: Take the halves that are there, and retrain none.
            quiet: No progress on stderr.

        Raises:
            BadInput: If another process makes this bank, or fewer than three halves are finished and no more are to be made.
        """
        config = BankConfig(
            train_ids=self.train.ids,
            query_ids=self.queries.ids,
            # Of an untrained model: nothing has to be trained to know it.
            unit=self.task_of(self.empty(), Recipe("sgd", 1.0)).unit,
            facts={"setting": self.name, "subsets": "random halves"},
        )

        def retrained(folder: str, count: int, seeds: range, config: BankConfig) -> Bank:
            masks_MN = random_subsets(len(self.train), count)
            fingerprint = self.retrain.fingerprint + self.measure.fingerprint
            retraining = Retraining(
                seeds=seeds, folder=self.folder / folder, fingerprint=fingerprint, workers=workers, quiet=quiet
            )
            if only_finished:
                return finished_bank(masks_MN, retraining, config)
            return make_bank(self.retrain, self.measure, masks_MN, retraining, config)

        # Not the seeds of the members: what is attributed was not part of the truth it is held against.
        bank = retrained("bank", self.subsets, range(1000, 1000 + self.seeds), config)
        if not self.repeated:
            return bank
        try:
            return bank.with_repeats(retrained("bank-repeated", self.repeated, range(2000, 2001), replace(config, full=False)))
        except BadInput:
            if not only_finished:
                raise
            return bank  # too few second seeds so far: the evaluation says that its ceiling is not known


def prepare(name: str, folder: str | Path) -> Setting:
    """A setting by name.

    Args:
        name: One of SETTINGS.
        folder: Models and bank go to the subfolder of that name.

    Raises:
        UnknownOption: If there is no such setting.
    """
    if name not in SETTINGS:
        raise UnknownOption(found=f"the setting {name!r}", needed=f"one of: {', '.join(SETTINGS)}", do="pick one")
    setting_folder = Path(folder) / name
    setting_folder.mkdir(parents=True, exist_ok=True)
    write_json(setting_folder / "setting.json", {"name": name})
    return SETTINGS[name](setting_folder)


def load_setting(folder: str | Path) -> Setting:
    """The setting that `prepare` put into a folder."""
    folder = Path(folder)
    return prepare(str(dict(read_json(folder / "setting.json")).get("name")), folder.parent)


def _small(
    name: str,
    folder: Path,
    settings: SmallSettings,
    data: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    kind: type[Classification] | type[Regression] = Classification,
    seeds: int = 4,
    second_stage: int | None = None,
    flipped_N: Tensor | None = None,
) -> Setting:
    train, queries = data
    retrain = SmallRetrain(*train, settings, second_stage)

    def task_of(model: nn.Module, recipe: Recipe) -> AbstractTask:
        return kind(model, recipe=recipe)

    def fit(seed: int) -> tuple[nn.Module, Recipe]:
        # After two stages the last one's schedule is what the weights were left with.
        last = len(train[1]) - (second_stage or 0)
        return retrain(torch.ones(len(train[1]), dtype=torch.bool), seed), settings.recipe(last)

    def records(pair: tuple[Tensor, Tensor], prefix: str) -> list[dict[str, Any]]:
        target = "label" if kind is Classification else "target"
        return [
            # A copy of the row: the tensor's own memory moves when a bank sends it to other processes.
            {"id": f"{prefix}{number}", "inputs": row.clone(), target: value}
            for number, (row, value) in enumerate(zip(*pair, strict=True))
        ]

    plain = task_of(new_network(settings.network, 0), settings.recipe(len(train[1])))
    is_of_images = settings.network in ("mlp", "cnn")
    dark = plain.prepare(records((dimmed(queries[0]), queries[1]), "query-")) if is_of_images else None
    return Setting(
        name,
        plain.prepare(records(train, "train-")),
        plain.prepare(records(queries, "query-")),
        task_of,
        fit,
        lambda: new_network(settings.network, 0),
        retrain,
        SmallLosses(*queries),
        100,
        seeds,
        folder,
        flipped_N=flipped_N,
        other_format=None if dark is None else ("dimmed by a quarter", dark),
    )


def _digits_mlp(folder: Path) -> Setting:
    return _small("digits-mlp", folder, SmallSettings(), digits())


def _digits_cnn(folder: Path) -> Setting:
    return _small("digits-cnn", folder, SmallSettings(network="cnn", learning_rate=0.1), digits(), seeds=3)


def _digits_certain(folder: Path) -> Setting:
    """Trained until nothing is left of the loss, which leaves next to nothing of gradients and curvature."""
    return _small("digits-certain", folder, SmallSettings(epochs=100, weight_decay=0.0), digits(), seeds=3)


def _text_labels(folder: Path) -> Setting:
    """A language model's classifier, trained until nothing is left of the loss."""
    settings = SmallSettings(
        network="reader", optimizer="adamw", epochs=16, batch_examples=16, learning_rate=2e-3, weight_decay=0.0
    )
    return replace(_small("text-labels", folder, settings, labelled_texts(READER_WORDS, READER_LENGTH)), subsets=50)


def _digits_noisy(folder: Path) -> Setting:
    (images, labels), queries = digits()
    noisy, flipped_N = flip_labels(labels, _FLIPPED, 10, seed=0)
    settings = SmallSettings(weight_decay=3e-3)
    return _small("digits-noisy", folder, settings, ((images, noisy), queries), seeds=3, flipped_N=flipped_N)


def _digits_stages(folder: Path) -> Setting:
    """First half upright, second half turned by a right angle; the queries are upright, so the first stage is partly forgotten."""
    (images, labels), queries = digits()
    half = len(labels) // 2
    turned = torch.rot90(images[half:].view(-1, 8, 8), 1, (1, 2)).flatten(1)
    data = (torch.cat([images[:half], turned]), labels)
    return _small("digits-stages", folder, SmallSettings(epochs=20), (data, queries), seeds=3, second_stage=half)


def _digits_early(folder: Path) -> Setting:
    """Stopped long before it is converged, which methods that look at the end of a run do not know."""
    return _small("digits-early", folder, SmallSettings(epochs=3, learning_rate=0.02), digits(), seeds=3)


def _table(folder: Path) -> Setting:
    settings = SmallSettings(network="table", epochs=60, learning_rate=0.02, weight_decay=1e-2)
    return _small("table", folder, settings, diabetes(), kind=Regression, seeds=3)


def language_setting(name: str, folder: Path, language: Language, subsets: int) -> Setting:
    """A language model's setting, with two seeds a half.

    Args:
        name: Its name.
        folder: Where models and bank are kept.
        language: Documents and training.
        subsets: Random halves in the bank.
    """
    settings, vocabulary = language.settings, language.vocabulary
    retrain = Retrain(language.train, vocabulary, settings, language.start)

    def task_of(model: nn.Module, recipe: Recipe) -> AbstractTask:
        return CausalLM(model, language.tokenizer, long="truncate", recipe=recipe)

    def fit(seed: int) -> tuple[nn.Module, Recipe]:
        trained = train(language.train, vocabulary, seed=seed, settings=settings, start=language.start)
        return trained.model, trained.recipe

    records = reformatted([{"id": example.id, "text": example.text} for example in language.queries.examples], "json")
    return Setting(
        name,
        language.train,
        language.queries,
        task_of,
        fit,
        lambda: new_model(vocabulary, 0, settings),
        retrain,
        QueryLosses(language.queries),
        subsets,
        2,
        folder,
        other_format=("as JSON", task_of(new_model(vocabulary, 0, settings), Recipe("adamw", 1.0)).prepare(records)),
    )


def _text(folder: Path) -> Setting:
    return language_setting("text", folder, from_scratch(TEXT), 100)


def _text_long(folder: Path) -> Setting:
    return language_setting("text-long", folder, from_scratch(TEXT_LONG), 40)


def _text_medium(folder: Path) -> Setting:
    """Fine-tuned from pretrained weights, which every half starts from: the seed is of the order alone."""
    setting = language_setting("text-medium", folder, tuned(folder / "models"), 40)
    return replace(setting, seeds=1, repeated=8)


def _digits_diffusion(folder: Path) -> Setting:
    """A denoiser of a few digits; the queries are images that it made."""
    settings = DenoiserSettings()
    (inputs, labels), _ = digits()
    images = (2 * inputs[:_DENOISED] - 1).view(-1, 1, 8, 8)
    retrain = DenoiserRetrain(images, settings)
    everything = torch.ones(len(images), dtype=torch.bool)
    generated = folder / "models" / f"{retrain.fingerprint[:16]}-generated.safetensors"
    if not generated.exists():
        generated.parent.mkdir(parents=True, exist_ok=True)
        records = sample_images(denoising(retrain(everything, 0), settings), _GENERATED, (1, 8, 8))
        write_tensors(generated, {"images": torch.stack([record["image"] for record in records])})
    plain = denoising(new_denoiser(settings, 0), settings)
    queries = plain.prepare(
        {"id": f"generated-{n}", "image": image} for n, image in enumerate(read_tensors(generated)["images"])
    )
    return Setting(
        "digits-diffusion",
        plain.prepare(
            {"id": f"train-{n}", "image": image, "source": f"digit {label}"}
            for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=False))
        ),
        queries,
        lambda model, recipe: denoising(model, settings, recipe=recipe),
        lambda seed: (retrain(everything, seed), settings.recipe(len(images))),
        lambda: new_denoiser(settings, 0),
        retrain,
        DenoiserLosses(queries, settings),
        100,
        2,
        folder,
    )


ONLY_NAMED = ("text-medium", "text-long", "digits-certain", "text-labels")
"""Settings that take long, left out where none is named."""

SETTINGS: Mapping[str, Callable[[Path], Setting]] = {
    "digits-mlp": _digits_mlp,
    "digits-cnn": _digits_cnn,
    "text": _text,
    "text-long": _text_long,
    "text-medium": _text_medium,
    "table": _table,
    "digits-stages": _digits_stages,
    "digits-early": _digits_early,
    "digits-noisy": _digits_noisy,
    "digits-diffusion": _digits_diffusion,
    "digits-certain": _digits_certain,
    "text-labels": _text_labels,
}

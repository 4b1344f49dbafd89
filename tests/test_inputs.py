"""What people pass by mistake, and what they may pass."""

import inspect
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.errors import BadInput, NonFinite, StoreMismatch, UnknownOption
from whence.load import load_task


def classifier(dtype=torch.float32):
    torch.manual_seed(0)
    return whence.Classification(nn.Linear(4, 3).to(dtype))


ROWS = [(torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(6)]


def test_weights_that_change_under_the_same_task_are_noticed(tmp_path):
    task = classifier()
    store = whence.build(task, ROWS, tmp_path / "store", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    with torch.no_grad():
        task.model.weight.data.add_(0.1)
    with pytest.raises(StoreMismatch, match="found a store of weights"):
        whence.query(store, task, ROWS[:1], runtime=QUIET)
    with pytest.raises(StoreMismatch, match="a store of other weights"):
        whence.build(task, ROWS[:1], tmp_path / "store", append=True, config=whence.BuildConfig(method="logra"), runtime=QUIET)


def test_numbers_that_a_loss_sees_from_outside_are_part_of_it(tmp_path):
    network = nn.Linear(4, 3)

    def scaled(factor):
        return whence.Custom(network, lambda model, batch: factor * model(batch[0]).square().sum(1))

    store = whence.build(scaled(1.0), ROWS, tmp_path / "store", config=whence.BuildConfig(method="grad-dot"), runtime=QUIET)
    assert whence.score_table(store, scaled(1.0), ROWS[:1], runtime=QUIET).scores.shape == (1, 6)
    with pytest.raises(StoreMismatch, match="tokenizer or loss"):
        whence.score_table(store, scaled(5.0), ROWS[:1], runtime=QUIET)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"train": ROWS, "test": ROWS}, "a mapping with the keys train, test as data.*pick one split, such as data"),
        ("train.jsonl", "one string as data; .*whence.load_records"),
        ([(torch.randn(4), 1.9)], "record 0 with the label 1.9"),
        ([(torch.randn(4), True)], "record 0 with the label True"),
        ([(torch.randn(4), -100)], "record 0 with the label -100"),
        ([(torch.randn(4), [0, 1, 0])], "record 0 with several labels"),
        ([(torch.randn(4), "cat")], "record 0 with the label 'cat'"),
        ([(torch.randn(4), 5)], r"the label 5 for logits of shape \(1, 3\)"),
        (
            [((torch.randn(4), torch.randn(2)), 1)],
            "record 0 whose 'inputs' is no array of numbers.*a mapping of the model's keywords",
        ),
        (
            [(torch.randn(4), 0), (torch.randn(6), 0)],
            r"inputs 'inputs' of different shapes \(\(4,\), \(6,\)\) and no attention_mask",
        ),
        (["text"], "record 0, a str; needed a pair"),
        ([], "an empty dataset"),
    ],
)
def test_wrong_data(tmp_path, data, text):
    with pytest.raises(BadInput, match=text):
        whence.build(classifier(), data, tmp_path / "store", runtime=QUIET)
    assert not (tmp_path / "store" / "blueprint.json").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["float64", "numpy", "bfloat16"])
def test_inputs_take_the_precision_of_the_model(tmp_path, dtype, kind):
    convert = {"float64": lambda x: x.double(), "numpy": lambda x: x.double().numpy(), "bfloat16": lambda x: x.bfloat16()}[kind]
    rows = [(convert(values), np.int64(label)) for values, label in ROWS]
    store = whence.build(classifier(dtype), rows, tmp_path / "store", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    assert len(store) == 6


def test_labels_of_one_entry_and_named_labels(tmp_path):
    task = classifier()
    task.model.config = type("Config", (), {"label2id": {"cat": 0, "dog": 2}})()
    dataset = task.prepare([(ROWS[0][0], torch.tensor([1])), {"inputs": ROWS[1][0], "label": "dog"}])
    assert [int(example.fields["target"]) for example in dataset.examples] == [1, 2]
    with pytest.raises(BadInput, match="from 0, or one of cat, dog"):
        task.prepare([(ROWS[0][0], "bird")])


def test_bfloat16_records_of_a_custom_task(tmp_path):
    task = whence.Custom(nn.Linear(4, 2).bfloat16(), lambda model, batch: model(batch).float().square().sum(1))
    store = whence.build(
        task,
        [values.bfloat16() for values, _ in ROWS],
        tmp_path / "store",
        config=whence.BuildConfig(method="logra"),
        runtime=QUIET,
    )
    assert len(store) == 6


def test_a_model_where_a_task_belongs(tmp_path):
    store = whence.build(classifier(), ROWS, tmp_path / "store", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    model: Any = classifier().model
    for ask in (
        lambda: whence.build(model, ROWS, tmp_path / "other"),
        lambda: whence.query(store, model, ROWS[:1]),
        lambda: whence.score_table(store, model, ROWS[:1]),
        lambda: whence.attribute(model, ROWS, ROWS[:1]),
        lambda: whence.self_influence(model, ROWS),
    ):
        with pytest.raises(BadInput, match=r"found a model \(Linear\) where a task belongs; .* pass whence.CausalLM"):
            ask()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": whence.settings.PCG}, r"found method=PCG; needed the name of a method.* write PCG\(\)"),
        ({"method": dict}, "found method=dict; .* pass a name of `whence methods`"),
        ({"method": 3}, "found method=3; needed the name of a method, or its settings"),
        ({"runtime": {"quiet": True}}, r"found runtime={'quiet': True}; .* write runtime=Runtime\(quiet=True\)"),
        ({"runtime": whence.Runtime}, "found runtime=Runtime; needed a record of settings, Runtime"),
    ],
)
def test_settings_of_another_kind(options, text):
    for ask in (
        lambda: whence.attribute(classifier(), ROWS, ROWS[:1], **options),
        lambda: whence.self_influence(classifier(), ROWS, **options),
    ):
        with pytest.raises(BadInput, match=text):
            ask()


@pytest.mark.parametrize("text", ["inf", "1e999k", "nan", "64t", ""])
def test_bytes_that_are_no_number(text):
    with pytest.raises(BadInput, match=f"found shared_bytes='{text}'; needed a number of bytes, such as 512, 2k, 64m or 2g"):
        whence.BuildConfig(shared_bytes=text)
    assert whence.BuildConfig(shared_bytes="0.5").shared_bytes == 1  # not 0, which asks for the default


def test_gradients_beyond_the_stored_type(tmp_path):
    task = whence.Custom(nn.Linear(4, 2), lambda model, batch: 1e6 * model(batch[0]).square().sum(1))
    with pytest.raises(NonFinite, match="a gradient of the example '0' that float16 cannot hold.*dtype bfloat16"):
        whence.build(
            task, ROWS, tmp_path / "store", config=whence.BuildConfig(method="grad-dot", dtype="float16"), runtime=QUIET
        )


def test_a_lost_shard_of_grown_data_is_made_again_in_its_place(tmp_path):
    task, options = classifier(), {"method": "logra", "rows_per_shard": 2}
    more = [{"inputs": values, "label": label, "id": f"more {i}"} for i, (values, label) in enumerate(ROWS[:3])]
    first = [{"inputs": values, "label": label, "id": f"first {i}"} for i, (values, label) in enumerate(ROWS[:2])]
    folder = tmp_path / "store"
    whence.build(task, first, folder, config=whence.BuildConfig(**options), runtime=QUIET)
    before = whence.build(task, more, folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET).ids()
    content = (folder / "shards" / "00000.safetensors").read_bytes()
    for path in (folder / "shards").glob("00000.*"):
        path.unlink()
    assert whence.build(task, first, folder, config=whence.BuildConfig(**options), runtime=QUIET).ids() == before
    assert (folder / "shards" / "00000.safetensors").read_bytes() == content
    assert (
        whence.build(task, first, folder, config=whence.BuildConfig(**options), runtime=QUIET).ids() == before
    )  # nothing to do, though it is not the last data


def test_training_mode_is_told(tmp_path, capsys):
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    task = whence.Classification(network)
    whence.build(task, ROWS, tmp_path / "a", config=whence.BuildConfig(method="logra"))
    assert "gradients are taken in evaluation mode" in capsys.readouterr().err and network.training
    network.eval()
    whence.build(task, ROWS, tmp_path / "b", config=whence.BuildConfig(method="logra"))
    assert "evaluation mode" not in capsys.readouterr().err


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("kind", ["classification", "custom"])
def test_examples_do_not_follow_what_happens_to_the_records(kind, as_array):
    inputs, labels = torch.arange(12.0).view(3, 4), torch.tensor([0, 1, 0])
    network = torch.nn.Linear(4, 2)
    task = (
        whence.Classification(network)
        if kind == "classification"
        else whence.Custom(network, lambda model, batch: model(batch[0]).sum(1))
    )
    rows = inputs.numpy() if as_array else inputs
    dataset = task.prepare([(row, label) for row, label in zip(rows, labels, strict=True)])
    before = [value.copy() for value in dataset.examples[1].fields.values()]
    inputs.mul_(-1)
    assert all((one == other).all() for one, other in zip(before, dataset.examples[1].fields.values(), strict=True))
    inputs.share_memory_()  # as a pool of workers does; memory that an example still looked at would be freed
    assert all((one == other).all() for one, other in zip(before, dataset.examples[1].fields.values(), strict=True))


def _custom():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"].float()), batch["target"], reduction="none")

    return whence.Custom(nn.Linear(4, 3), loss)


@pytest.mark.parametrize(
    "field, told",
    [
        (np.array(["a"] * 4), "is an array of <U1"), (np.array([1, None, 2, 3]), "is an array of object"),
        (np.array(["2020-01-01"] * 4, dtype="datetime64[D]"), "is an array of datetime64"),
        (np.ma.masked_array([1.0, 2.0, 3.0, 4.0], mask=[0, 1, 0, 0]), "is an array of float64 with masked entries"),
        (torch.zeros(4).to_sparse(), "is a sparse or quantized tensor"),
        (torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8), "is a sparse or quantized tensor"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_numbers_are_refused_by_custom_tasks(field, told):
    records = [{"inputs": torch.ones(4), "target": 0}, {"inputs": field, "target": 1}]
    with pytest.raises(BadInput, match=f"record 1 whose field 'inputs' {told}.*; needed arrays, tensors, numbers"):
        _custom().prepare(records)


def test_custom_tasks_take_numbers_of_any_byte_order():
    values = np.arange(4, dtype=">f4")
    batch = _custom().collate(_custom().prepare([{"inputs": values, "target": 0}]).examples)
    assert batch["inputs"].tolist() == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize("path", ["\ud800.png", "a\0b.png"])
def test_paths_of_images_that_are_none_are_refused(path):
    with pytest.raises(BadInput, match="record 0 with the image .*, which cannot be read"):
        whence.Classification(nn.Linear(4, 3)).prepare([{"image": path, "label": 0}])


@pytest.mark.parametrize(
    "spans", [[], "", {}, [None], "ab", torch.tensor([]), np.array([1, 2]), np.zeros((0, 2)), [[0, 1, 2]], [[0.5, 1]], -0.0]
)
def test_scored_spans_that_are_no_pairs_are_refused(spans, model_folder):
    task, _ = load_task(str(model_folder))
    with pytest.raises(BadInput, match="record 0 with scored_spans that are no pairs of whole numbers"):
        task.prepare([{"text": "a cat", "scored_spans": spans}])
    assert task.prepare([{"text": "a cat", "scored_spans": None}]).examples[0].length == 5


@pytest.mark.parametrize("ids", [torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8), memoryview(b"abc")])
def test_token_ids_in_disguise_are_refused(ids, model_folder):
    task, _ = load_task(str(model_folder))
    with pytest.raises(BadInput, match="record 0 with input_ids or labels that are no list of integers"):
        task.prepare([{"input_ids": ids}])


@pytest.mark.parametrize("make", [lambda model: whence.CausalLM(model, None), whence.Classification, whence.Regression])
def test_what_is_no_model_is_refused(make):
    with pytest.raises(BadInput, match="found a str as the model; needed a torch.nn.Module"):
        make("gpt2")


SETTINGS = whence.settings


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: whence.EKFAC(damping=0.1), r"found damping=0.1; .* write damping=Damping\(relative=0.1\)"),
        (lambda: whence.EKFAC(damping={"relative": 0.1}), r"write damping=Damping\(relative=0.1\)"),
        (lambda: whence.EKFAC(damping=None), "found damping=None; needed a record of settings, Damping"),
        (lambda: whence.EKFAC(fit={"seed": 1}), r"write fit=FitConfig\(seed=1\)"),
        (lambda: whence.BuildConfig(rank=1.5), "found rank=1.5; needed a whole number"),
        (lambda: whence.BuildConfig(rank=True), "found rank=True; needed a whole number"),
        (lambda: whence.BuildConfig(bytes_per_example=512.5), "needed a whole number or a text"),
        (
            lambda: whence.BuildConfig(relative_damping=whence.Damping()),
            "found relative_damping=Damping.*; needed a finite number",
        ),
        (lambda: whence.Damping(relative="0.1"), "found relative='0.1'; needed a finite number or None"),
        (lambda: whence.Damping(relative=float("inf")), "found relative=inf; needed a finite number"),
        (lambda: whence.Runtime(quiet="yes"), "found quiet='yes'; needed True or False"),
        (lambda: whence.Runtime(memory_gib="4"), "found memory_gib='4'; needed a finite number or None"),
        (lambda: SETTINGS.PCG(iterations="x"), "found iterations='x'; needed a whole number"),
        (lambda: SETTINGS.SharesConfig(payout=1000), "found payout=1000; needed a text or None"),
        (lambda: SETTINGS.Indexed(store="s", index=None), "found index=None; needed a text or a path"),
        (lambda: whence.Source(run=3), "found run=3; needed a text or a path or None"),
        (
            lambda: whence.Diffusion(nn.Linear(2, 2), noised=whence.tasks.Draws(draws="x")),
            "found draws='x'; needed a whole number",
        ),
    ],
)
def test_fields_of_another_type(make, text):
    with pytest.raises(BadInput, match=text):
        make()


TASK = classifier()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: whence.build(TASK, ROWS, "never", method="logra"),
            "option method of build; .* write config=whence.settings.BuildConfig\\(method='logra'\\)",
        ),
        (
            lambda: whence.attribute(TASK, ROWS, ROWS, relative_damping=0.1),
            "write method=whence.settings.EKFAC\\(damping=whence.settings.Damping\\(relative=0.1\\)\\)",
        ),
        (
            lambda: whence.query("never", TASK, ROWS, damping_rule="lorif"),
            "write damping=whence.settings.Damping\\(rule='lorif'\\)",
        ),
        (lambda: whence.query("never", TASK, ROWS, index="i"), "write store=whence.settings.Indexed\\(index='i'\\)"),
        (lambda: whence.self_influence(TASK, ROWS, quiet=True), "write runtime=whence.settings.Runtime\\(quiet=True\\)"),
        (
            lambda: whence.Classification(TASK.model, max_length=3),
            "option max_length of Classification; .* write texts=whence.tasks.TextLimits\\(max_length=3\\)",
        ),
    ],
)
def test_options_by_name_are_told_their_record(call, text):
    with pytest.raises(UnknownOption, match=text):
        call()


def test_options_that_no_record_has_are_told_by_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        cast(Any, whence.build)(TASK, ROWS, "never", nonsense=1)


RECORDS = ("whence.settings", "whence.tasks")


def _taking_records():
    """Every public function and task with an argument that is a record of settings unless another is given."""
    rooms = [whence, *(value for name in dir(whence) if inspect.ismodule(value := getattr(whence, name)))]
    public = [getattr(room, name) for room in rooms for name in room.__all__]
    tasks = [kind for kind in public if isinstance(kind, type) and issubclass(kind, whence.tasks.AbstractTask)]
    for call in sorted({*filter(inspect.isfunction, public), *tasks}, key=lambda call: call.__qualname__):
        for parameter in inspect.signature(call).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and type(parameter.default).__module__.startswith(RECORDS):
                yield pytest.param(call, parameter.name, id=f"{call.__qualname__}-{parameter.name}")


TAKING = list(_taking_records())
assert len(TAKING) > 30  # the search finds what is public


@pytest.mark.parametrize(("call", "name"), TAKING)
def test_what_is_no_record_is_refused_before_anything_else(call, name):
    parameters = inspect.signature(call).parameters.values()
    needed = [one for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    with pytest.raises(BadInput, match=f"found {name}={{}}; needed a record of settings"):
        call(*[None] * len(needed), **{name: {}})


def test_what_is_no_store_is_refused():
    for wrong in (3, None, SETTINGS.Shortlist(store="s")):
        with pytest.raises(BadInput, match="where a store belongs; needed a store, or the name of its folder"):
            whence.query(cast(Any, wrong), classifier(), ROWS)
    with pytest.raises(BadInput, match="found a list where a task belongs"):
        whence.build(cast(Any, ROWS), cast(Any, classifier()), "never")

"""Whatever is handed in as data becomes exactly the records that are meant, or is refused in one line."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import whence
from tests.settings import QUIET
from whence.data import skipped_note
from whence.errors import BadInput
from whence.tasks import records_in
from whence.tasks.fields import whole_numbers
from whence.tasks.prepared import _ENOUGH_BAD

RECORDS = ["a", "b", "c", "d", "e"]


class Numbered(torch.utils.data.Dataset):
    """A dataset with a length that answers any number, as ones that make their examples do."""

    def __init__(self, length=5, fails_at=None, error=ValueError):
        self.length, self.fails_at, self.error = length, fails_at, error

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        if number == self.fails_at:
            raise self.error(f"no file {number}")
        return "abcdefgh"[number % 8]


class Streamed(IterableDataset):
    def __init__(self, length=None, count=5):
        self.length, self.count = length, count

    def __len__(self):
        if self.length is None:
            raise NotImplementedError
        return self.length

    def __iter__(self):
        return iter("abcdefgh"[: self.count])


class OldProtocol:
    """What Python could go over before there were iterators, with a length."""

    def __len__(self):
        return 5

    def __getitem__(self, number):
        return RECORDS[number]


@pytest.mark.parametrize(
    "data",
    [
        RECORDS,
        tuple(RECORDS),
        (record for record in RECORDS),
        np.array(RECORDS),
        np.array(RECORDS, dtype=object),
        Numbered(),
        Subset(Numbered(8), range(5)),
        Streamed(),
        Streamed(5),
        OldProtocol(),
        DataLoader(Numbered(), batch_size=2),
        DataLoader(Numbered(), batch_size=3, shuffle=True, drop_last=True),
        DataLoader(Streamed(), batch_size=2),
        DataLoader(Numbered(), batch_size=None),
        dict.fromkeys(RECORDS).keys(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_records_are_read_one_by_one(data):
    assert list(records_in(data)) == RECORDS


def test_columns_of_tensors_are_pairs():
    rows = TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1]))
    task = whence.Classification(nn.Linear(2, 2))
    for data in (rows, DataLoader(rows, batch_size=2)):
        dataset = task.prepare(data)
        assert dataset.ids == ("0", "1", "2")
        assert [int(example.fields["target"]) for example in dataset.examples] == [0, 1, 1]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": RECORDS}, "a mapping with the keys train as data.*pick one split"),
        ("train.jsonl", "one string as data.*put it into a list"),
        (b"abc", "one string as data"),
        (Path("train.jsonl"), "a file .* as data; .*read it with whence.load_records"),
        (io.StringIO("a\nb\n"), "a file .a StringIO. as data"),
        (None, "a NoneType as data; needed a list of records"),
        (7, "a int as data"),
        (set(RECORDS), "a set, which has no order, as data; .*pass a list"),
        (lambda: RECORDS, "a function as data; .*call it, and pass what it returns"),
        (Numbered, "a type as data"),
        (torch.tensor(3.0), "a Tensor without axes as data"),
        ((torch.zeros(4, 2), torch.zeros(4)), r"a tuple of 2 arrays or lists as data; .*whence.load_arrays\(X, y\)"),
        ((np.zeros((2, 2)), np.zeros((2, 2))), "a tuple of 2 arrays or lists as data"),
        (([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0]), "a tuple of 2 arrays or lists as data"),
        (DataLoader(Numbered(), batch_size=2, collate_fn=list), "a DataLoader, which samples or puts together .* pass its dataset"),
        (DataLoader(Numbered(), sampler=[0, 0, 1]), "a DataLoader, which samples"),
        (DataLoader(Numbered(), batch_sampler=[[0, 1], [2]]), "a DataLoader, which samples"),
        (iter(DataLoader(Numbered(), batch_size=2)), "a _SingleProcessDataLoaderIter, which samples or puts together"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused(data, says):
    with pytest.raises(BadInput, match=f"^found {says}"):
        records_in(data)


def test_tables_are_refused_and_their_rows_taken():
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": RECORDS, "id": range(5)})
    for table in (frame, pyarrow.table(frame)):
        with pytest.raises(BadInput, match=r"found a table .* as data; .*to_dict\('records'\) or table.to_pylist\(\)"):
            records_in(table)
    assert [record["text"] for record in records_in(frame.to_dict("records"))] == RECORDS
    assert list(records_in(frame["text"])) == RECORDS


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_dataset_of_hugging_face_in_any_format(form):
    datasets = pytest.importorskip("datasets")
    rows = [{"inputs": [0.5, number / 2], "label": number % 2, "id": 10 + number, "source": None} for number in range(4)]
    data = datasets.Dataset.from_list(rows).with_format(form)
    dataset = whence.Classification(nn.Linear(2, 2)).prepare(data)
    assert dataset.ids == ("10", "11", "12", "13") and {example.source for example in dataset.examples} == {""}
    assert [example.fields["inputs"].tolist() for example in dataset.examples] == [row["inputs"] for row in rows]


def test_a_length_is_held():
    for count, says in ((8, "more"), (3, "3")):
        with pytest.raises(BadInput, match=f"a Streamed of length 5 that gives {says} records; needed as many"):
            list(records_in(Streamed(5, count)))


@pytest.mark.parametrize("error", [ValueError, KeyError, IndexError, StopIteration])
def test_a_record_that_cannot_be_had_is_named(error):
    with pytest.raises(BadInput, match=f"record 3 of a Numbered that cannot be had .{error.__name__}: .*no file 3"):
        list(records_in(Numbered(fails_at=3, error=error)))


def test_a_generator_that_fails_is_not_a_short_dataset():
    def rows():
        yield from RECORDS[:2]
        raise RuntimeError("connection lost")

    with pytest.raises(BadInput, match="record 2 of a generator that cannot be had .RuntimeError: connection lost"):
        whence.Custom(nn.Linear(2, 2), lambda m, b: m(b)).prepare(rows())


# Ids, sources and texts


TABLE = [{"inputs": [0.5, 1.0], "label": 0}, {"inputs": [1.5, 2.0], "label": 1}]


def _classes(*changes):
    rows = [{**row, **change} for row, change in itertools.zip_longest(TABLE, changes, fillvalue={})]
    return whence.Classification(nn.Linear(2, 2)).prepare(rows)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("x", "x"), (7, "7"), (np.int64(7), "7"), (torch.tensor(7), "7"), (None, "0"), (np.str_("y"), "y"), (Path("a/b"), "a/b")],
)
def test_ids_of_any_plain_kind(given, wanted):
    assert _classes({"id": given}).ids == (wanted, "1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([{"id": float("nan")}], "record 0 with an id that is nan; needed a string or a whole number"),
        ([{"id": ""}], "record 0 with an id that is ''"),
        ([{"id": ["a"]}], "record 0 with an id that is a list"),
        ([{"id": {"a": 1}}], "record 0 with an id that is a dict"),
        ([{"id": b"a"}], "record 0 with an id that is b'a'"),
        ([{"id": 1}, {"id": "1"}], "two examples with the id '1'"),
        ([{"id": "1"}], "two examples with the id '1'"),
        ([{"id": "\ud800"}], "record 0 with 'id' that is no valid Unicode .*at character 0"),
        ([{}, {"source": ["a", "b"]}], "record 1 with a source that is a list"),
        ([{}, {"text": 5}], "record 1 with a 'text' of type int"),
    ],
)
def test_ids_and_sources_that_cannot_be_kept(changes, says):
    with pytest.raises(BadInput, match=says):
        _classes(*changes)


# Numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.integers(-5, 5), st.floats(-3, 3), st.text(max_size=2), st.booleans(), st.none()), max_size=5))
def test_whole_numbers_are_never_made(values):
    are_whole = all(type(value) is int for value in values)
    assert whole_numbers(values) == (values if are_whole else None)
    for form in (tuple, lambda row: np.array(row, dtype=object)):
        assert whole_numbers(form(values)) == (values if are_whole else None)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from(["int8", "uint16", "int32", "int64", "float32", "bool"]),
)
def test_whole_numbers_of_arrays(values, kind):
    array = np.array(values).astype(kind)
    is_whole = kind not in ("float32", "bool")
    assert whole_numbers(array) == (values if is_whole else None)
    assert whole_numbers(torch.from_numpy(array.astype("int64"))) == array.astype(int).tolist()
    assert whole_numbers(array[None]) is None and whole_numbers(np.array(3)) is None
    assert (
        whole_numbers("12") is None
        and whole_numbers(b"12") is None
        and whole_numbers({1, 2}) is None
        and whole_numbers(12) is None
    )


PLAIN = st.one_of(
    st.integers(-3, 3),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.lists(st.floats(-2, 2), max_size=3),
    st.lists(st.text(max_size=1), max_size=2),
    st.sampled_from([[0, 1, 0], [[1.0, 2.0], [3.0]], b"ab"]),
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(PLAIN, st.tuples(PLAIN, PLAIN), st.fixed_dictionaries({"inputs": PLAIN, "label": PLAIN, "id": PLAIN})),
        max_size=4,
    )
)
def test_a_label_is_the_one_given_or_the_record_is_refused(records):
    task = whence.Classification(nn.Linear(2, 2), labels=["no", "yes"])
    try:
        dataset = task.prepare(records)
    except BadInput as error:
        assert "\n" not in str(error)
        return
    assert len(dataset) == len(records)
    for example, record in zip(dataset.examples, records, strict=True):
        label = record["label"] if isinstance(record, dict) else record[1]
        inputs = record["inputs"] if isinstance(record, dict) else record[0]
        assert type(label) is int or label in ("no", "yes")
        assert int(example.fields["target"]) == (["no", "yes"].index(label) if isinstance(label, str) else label)
        np.testing.assert_array_equal(example.fields["inputs"], inputs)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([([0.5, 1.0], 0), ([1, 2], 0)], "record 1 whose 'inputs' is whole numbers, where the first has real numbers"),
        (
            [{"input": [0.5], "idx": 3, "label": 0}],
            "record 0 with the field 'idx', which the model does not take; needed .*: input$",
        ),
        ([(np.ma.masked_array([0.5, 1.0], [True, False]), 0)], "record 0 whose 'inputs' is no array of numbers"),
        ([(torch.eye(2).to_sparse(), 0)], "record 0 whose 'inputs' is no array of numbers"),
        ([("a text", 0)], "record 0 whose 'inputs' is text; .*pass a tokenizer"),
        ([(["1", "2"], 0)], "record 0 whose 'inputs' is text"),
        ([(b"ab")], "record 0, a bytes; needed a pair"),
        ([([0.5], 3)], "record 0 with the label 3 for 2 classes"),
    ],
)
def test_inputs_that_are_none(records, says):
    with pytest.raises(BadInput, match=says.removesuffix("$")):
        whence.Classification(nn.Linear(2, 2), labels=["no", "yes"]).prepare(records)


def test_inputs_that_only_some_records_have():
    class Any(nn.Linear):
        def forward(self, **inputs):
            return super().forward(inputs["x"])

    with pytest.raises(BadInput, match="record 1 with the inputs target, x, z, where the first has target, x"):
        whence.Classification(Any(1, 2)).prepare([{"x": [0.5], "label": 0}, {"x": [0.5], "z": [1.0], "label": 0}])


@pytest.mark.parametrize("kind", [">f8", "f2", "g", "u2", "u8", ">i4"])
def test_every_type_of_numbers_reaches_the_model(kind):
    task = whence.Regression(nn.Linear(2, 1).double())
    dataset = task.prepare([(np.arange(4, dtype=kind)[::-2], 1.0)])
    assert task.collate(dataset.examples)["inputs"]["inputs"].tolist() == [[3, 1]]


@pytest.mark.parametrize("target", [float("nan"), float("inf"), [], "0.5", None, [0.5, float("nan")], 1j])
def test_targets_that_are_no_numbers(target):
    with pytest.raises(BadInput, match="record 0"):
        whence.Regression(nn.Linear(2, 1)).prepare([([0.5, 1.0], target), ([0.5, 1.0], 1.0)])


def test_records_that_do_not_stack():
    task = whence.Custom(nn.Linear(2, 2), lambda m, b: m(b).sum(1))
    dataset = task.prepare([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(BadInput, match="examples that do not go into one batch, '0' to '1' .*pass a collate function"):
        task.collate(dataset.examples)
    with pytest.raises(BadInput, match="record 1 with the inputs b, where the first has a"):
        task.prepare([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(BadInput, match="record 0 whose field 'a' is of type dict"):
        task.prepare([{"a": {"b": 1.0}}])
    any_form = whence.Custom(
        nn.Linear(2, 2), lambda m, b: m(b).sum(1), collate=lambda rows: torch.stack([row["a"] for row in rows])
    )
    assert len(any_form.prepare([{"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": 1.0}])) == 2


# How many, and which


def test_all_records_that_cannot_be_used_are_counted_and_named():
    task = whence.Classification(nn.Linear(2, 2))
    rows = [{"inputs": [0.5, 1.0], "label": "x" if number % 3 == 1 else 0, "id": f"r{number}"} for number in range(9)]
    with pytest.raises(BadInput) as caught:
        task.prepare(rows)
    assert str(caught.value) == (
        "found record 1 with the label 'x' (id 'r1'); 3 of 9 records cannot be used: 'r1', 'r4', 'r7'; needed one class number from 0; "
        "do this: convert the labels; or pass skip_bad=True to the task (--skip-bad) to leave them out of 9"
    )
    with pytest.raises(BadInput, match=r"or pass skip_bad=True to the task \(--skip-bad\) to leave this one out of 3$"):
        task.prepare(rows[:3])
    with pytest.raises(
        BadInput, match="none of 2 records can be used; needed one class number from 0; do this: convert the labels$"
    ):
        task.prepare([rows[1], rows[4]])


def test_a_dataset_with_no_end_of_bad_records_is_not_read_to_its_end():
    read = []

    def rows():
        yield ([0.5], 0)
        for number in itertools.count():
            read.append(number)
            yield ([0.5], "x")

    with pytest.raises(BadInput, match=f"{_ENOUGH_BAD} of the first {_ENOUGH_BAD + 1} records cannot be used"):
        whence.Classification(nn.Linear(1, 2)).prepare(rows())
    assert len(read) == _ENOUGH_BAD


def test_bad_records_are_left_out_when_that_is_asked_for():
    task = whence.Classification(nn.Linear(2, 2), skip_bad=True)
    rows = [{"inputs": [0.5, 1.0], "label": "x" if number % 3 == 1 else 0, "id": f"r{number}"} for number in range(6)]
    dataset = task.prepare(rows)
    assert dataset.ids == ("r0", "r2", "r3", "r5")
    assert [(record.id, record.reason) for record in dataset.skipped] == [
        ("r1", "record 1 with the label 'x'"), ("r4", "record 4 with the label 'x'"),
    ]  # fmt: skip
    (note,) = skipped_note("queries", dataset.skipped)
    assert note.startswith("2 queries that cannot be used were left out: 'r1' (record 1 with the label 'x'), 'r4'")
    assert skipped_note("queries", task.prepare(rows[:1]).skipped) == ()
    with pytest.raises(BadInput, match=r"record 0 with the label 'x' \(id 'r1'\); needed"):
        task.prepare(rows[1:2])


def test_every_answer_names_the_records_that_were_left_out(tmp_path):
    torch.manual_seed(0)
    task = whence.Classification(nn.Linear(2, 2).double(), skip_bad=True)

    def rows(part, bad):
        return [{"inputs": [0.5, float(n)], "label": "x" if n in bad else n % 2, "id": f"{part}{n}"} for n in range(5)]

    options = {"method": "logra", "rank": 2}
    whence.build(task, rows("a", {3}), tmp_path / "store", config=whence.BuildConfig(**options), runtime=QUIET)
    whence.build(task, rows("b", {}), tmp_path / "store", append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    whence.build(task, rows("c", {0, 4}), tmp_path / "store", append=True, config=whence.BuildConfig(**options), runtime=QUIET)
    for notes in (
        whence.query(tmp_path / "store", task, rows("q", {1}), runtime=QUIET).notes,
        whence.score_table(tmp_path / "store", task, rows("q", {1}), runtime=QUIET).notes,
    ):
        assert any(
            note.startswith("3 training records that cannot be used were left out: 'a3' (record 3 with") for note in notes
        )
        assert any(note.startswith("1 queries that cannot be used were left out: 'q1'") for note in notes)
    assert not any(
        "left out: 'a3'" in note for note in whence.attribute(task, rows("b", {}), rows("q", {}), runtime=QUIET).notes
    )
    table = whence.attribute(task, rows("a", {3}), rows("q", {1}), method="grad-dot-exact", runtime=QUIET)
    assert table.train_ids == ("a0", "a1", "a2", "a4") and table.query_ids == ("q0", "q2", "q3", "q4")
    assert [note.split(" that")[0] for note in table.notes[1:]] == ["1 training records", "1 queries"]
    assert whence.self_influence(task, rows("a", {3}), runtime=QUIET).notes[-1].startswith("1 training records")


def test_the_command_leaves_records_out(tmp_path, model_folder, run):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a cat", "id": "one"}\n{"text": "", "id": "two"}\n{"body": 1, "id": "three"}\n')
    words = ("build", model_folder, path, "-o", tmp_path / "store", "--method", "grad-dot", "--rank", "2")
    error = run(*words, status=2)
    assert "found example 'two' with 0 token(s); 2 of 3 records cannot be used: 'two', 'three'; needed" in error
    assert "pass skip_bad=True to the task (--skip-bad) to leave them out of 3" in error
    assert '"rows": 1' in run(*words, "--skip-bad")
    assert "2 training records that cannot be used were left out: 'two' (" in run(
        "query", tmp_path / "store", "--text", "a dog"
    )

"""The check before every run sees what is wrong wherever it is in the data, and says what."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.capture import check_task, plan_units
from whence.capture.telling_examples import companions, telling_examples
from whence.data import Example
from whence.errors import BadInput, NonFinite, Unsupported


def checked(task, records, objective="loss"):
    return check_task(task, plan_units(task), task.prepare(records).examples, objective=objective)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def rows(count, label):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, generator=generator, dtype=torch.float64), label(number)) for number in range(count)]


# Batches that mix


def _similarities(model, batch):
    z = nn.functional.normalize(model(batch[0]), dim=-1)
    return (5 * z @ z.T).exp() * (1 - torch.eye(len(z), dtype=z.dtype)), z[:, 0]


def others_of_another_class(model, batch):
    similar, own = _similarities(model, batch)
    return torch.log1p((similar * (batch[1][:, None] != batch[1][None])).sum(1)) + own


def others_of_the_same_class(model, batch):
    similar, own = _similarities(model, batch)
    return torch.log1p((similar * (batch[1][:, None] == batch[1][None])).sum(1)) + own


def others_of_a_large_batch(model, batch):
    similar, own = _similarities(model, batch)
    return own + (similar.mean(1) if len(own) >= 12 else 0)


def hardest_of_another_class(model, batch):
    """A triplet loss with a margin that few examples violate (Hermans et al. 2017, equation 5)."""
    z = model(batch[0])
    distances = torch.cdist(z, z) + 10 * (batch[1][:, None] == batch[1][None])
    return z[:, 0].square() + torch.relu(0.06 - distances.amin(1))


def third_of_a_batch(model, batch):
    own = model(batch[0])[:, 0]
    return own + (own[2].square() if len(own) > 2 else 0)


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (others_of_another_class, lambda number: int(number == 33)),
        (others_of_another_class, lambda number: int(number < 2)),
        (others_of_another_class, lambda number: float(number % 11 == 3)),
        (others_of_the_same_class, lambda number: number // 2),
        (others_of_the_same_class, lambda number: 0 if number in (7, 21) else number),
        (others_of_the_same_class, lambda number: 0),
        (hardest_of_another_class, lambda number: number % 2),
        (others_of_a_large_batch, lambda number: 0),
        (third_of_a_batch, lambda number: 0),
    ],
)
def test_a_loss_that_looks_at_other_examples_is_refused(loss, label):
    with pytest.raises(
        BadInput, match=r"a loss that depends on the other examples of its batch \(.* of the example '\d+' in a batch"
    ):
        checked(whence.Custom(network(), loss), rows(40, label))


def test_a_gradient_that_other_examples_reach_is_refused_for_what_it_is():
    """The values of a batch are those alone: only what flows back is mixed."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            return grad + 0.01 * grad.mean(0)

    task = whence.Custom(network(), lambda model, batch: model[2](Mixed.apply(model[:2](batch[0])))[:, 0].square())
    with pytest.raises(BadInput, match="a gradient of '0.weight' that depends on the other examples of its batch"):
        checked(task, rows(9, lambda number: number))


class Pooled(nn.Module):
    """Classes of the mean, or the largest, of the tokens' vectors: of all of them, or of those that the mask lets through."""

    def __init__(self, heeds_mask, way="mean"):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.heeds_mask, self.way = nn.Embedding(9, 4), nn.Linear(4, 3), heeds_mask, way
        with torch.no_grad():  # what pads is the second largest: it shows where the largest is not
            self.table.weight[0] = self.table.weight.topk(2, 0).values.mean(0)

    def forward(self, input_ids, attention_mask):
        mask = (attention_mask if self.heeds_mask else torch.ones_like(attention_mask))[..., None].bool()
        vectors = self.table(input_ids)
        if self.way == "largest":
            return self.head(vectors.masked_fill(~mask, -torch.inf).amax(1))
        return self.head((vectors * mask).sum(1) / mask.sum(1))


def tokens(lengths, dtype=np.int64):
    generator = np.random.default_rng(0)
    return [
        {"input_ids": generator.integers(1, 9, size), "attention_mask": np.ones(size, dtype), "label": number % 3}
        for number, size in enumerate(lengths)
    ]


@pytest.mark.parametrize("way", ["mean", "largest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[5] * 30 + [6] + [5] * 9, [7] + [6] * 20, [3, 4], [8] * 20 + [7] * 20])
def test_padding_that_is_looked_at_is_refused_wherever_it_is(way, dtype, lengths):
    records = tokens(lengths)
    with pytest.raises(BadInput, match="that depends on the other examples of its batch .*attention over padding"):
        checked(whence.Classification(Pooled(False, way).to(dtype)), records)
    assert checked(whence.Classification(Pooled(True, way).to(dtype)), records) == []
    assert checked(whence.Classification(Pooled(False, way).to(dtype)), records[:1]) == []


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norms_without_statistics(affine, functional, norm):
    model = nn.Sequential(nn.Linear(4, 5), norm(5, affine=affine, track_running_stats=False), nn.Linear(5, 3))
    with pytest.raises(Unsupported, match="the batch norm '1' without running statistics, which mixes the examples of a batch"):
        whence.attribute(
            whence.Classification(model, functional=functional), rows(6, lambda n: n % 3), rows(2, int), runtime=QUIET
        )


# Types


class WideInside(nn.Module):
    """Computes a norm in float32 whatever the model is in, as Hugging Face's do; and once more in another way, if it is told to."""

    def __init__(self, again=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale, self.last, self.again = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3), again

    def forward(self, inputs):
        hidden = self.first(inputs)
        hidden = (hidden.float() / hidden.float().norm(dim=-1, keepdim=True)).to(inputs.dtype)
        again = nn.functional.linear(hidden, self.scale.weight) if self.again else 0
        return self.last(torch.softmax(self.scale(hidden), -1, dtype=torch.float32).to(inputs.dtype) + again)


def test_the_tolerance_is_that_of_the_narrowest_type_in_use():
    records = rows(6, lambda number: number % 3)
    assert checked(whence.Classification(WideInside().double()), records) == []
    with pytest.raises(Unsupported, match="captured gradient of 'scale.weight' that differs from autograd's"):
        checked(whence.Classification(WideInside(again=True).double()), records)
    mixed = WideInside().float()
    mixed.scale.to(torch.bfloat16)
    mixed.scale.register_forward_pre_hook(lambda module, args: args[0].bfloat16())
    mixed.scale.register_forward_hook(lambda module, args, output: output.float())
    assert checked(whence.Classification(mixed), [(row.float(), label) for row, label in records]) == []


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt_neox"])
def test_language_models_in_double_precision(name):
    pytest.importorskip("transformers")
    from tests import families, zoo

    task, dataset = zoo.make(name) if name in zoo.NAMES else families.make(name)
    assert next(task.model.parameters()).dtype == torch.float64
    check_task(task, plan_units(task), dataset.examples)


# Examples that are wrong by themselves


def test_an_example_that_the_model_cannot_take_is_named():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 3)

        def forward(self, inputs):
            return self.table(inputs).mean(1)

    records = [{"inputs": [1, 2], "label": 0, "id": f"r{number}"} for number in range(50)]
    records[41] = {"inputs": [1, 9], "label": 0, "id": "far"}
    with pytest.raises(
        BadInput, match="a model or a loss that fails on the example 'far' alone .IndexError: index out of range"
    ):
        checked(whence.Classification(Words()), records)
    with pytest.raises(BadInput, match=r"the label 8 for logits of shape \(1, 3\); .*\(seen in the example '17'\)"):
        checked(whence.Classification(network()), rows(30, lambda number: 8 if number == 17 else 1))
    with pytest.raises(BadInput, match="fails on the example '0' alone .RuntimeError: .*dtype"):
        checked(whence.Classification(nn.Linear(2, 3)), [([1, 2], 0), ([3, 4], 1)])


def test_an_input_that_is_no_number_is_named():
    records = rows(30, lambda number: number % 3)
    records[19][0][2] = torch.nan
    with pytest.raises(NonFinite, match="a loss of nan for the example '19'"):
        checked(whence.Classification(network()), records)


# Which examples


def examples(lengths, **fields):
    return [
        Example(str(number), {name: values[number] for name, values in fields.items()}, length)
        for number, length in enumerate(lengths)
    ]


def ids(chosen):
    return [example.id for example in chosen]


def test_the_chosen_examples_differ_and_two_are_alike():
    lengths = [5] * 40
    lengths[11], lengths[30] = 2, 9
    labels = [np.int64(number == 22) for number in range(40)]
    masks = [np.arange(4) <= number % 3 for number in range(40)]
    chosen = telling_examples(examples(lengths, target=labels, mask=masks), 100)
    assert len(chosen) == 5 and ids(chosen)[0] == "11" and ids(chosen)[-1] == "30" and "22" in ids(chosen)
    assert len({int(example.fields["mask"].sum()) for example in chosen}) > 1
    # Of as many labels as examples but for two, those two.
    labels = [np.int64(100 if number in (13, 27) else number) for number in range(40)]
    assert {"13", "27"} <= set(ids(telling_examples(examples([1] * 40, target=labels), 100)))
    assert ids(telling_examples(examples([3]), 100)) == ["0"] and ids(telling_examples(examples([3, 3]), 100)) == ["0", "1"]
    assert len(telling_examples(examples([1] * 9), 100)) == 4
    mixed = examples([1] * 4, kind=["a", 1, None, [2, 3]])
    assert len(telling_examples(mixed, 100)) == 4


def test_large_models_are_checked_on_short_examples():
    data = examples([*range(1000, 2000, 10), 40, 50])
    assert ids(telling_examples(data, 10**9)) == ["100", "101"] and companions(data, telling_examples(data, 10**9), 10**9) == []
    assert ids(telling_examples(data, 10))[-1] == "99"
    data = examples(range(10, 1000, 10), part=[np.int64(number % 7) for number in range(99)])
    few = telling_examples(data, 10**7)
    assert sum(example.length for example in few) <= 2000 and len(few) > 2 and few[-1].length == 500
    crowd = companions(data, few, 10**6)
    assert len(crowd) + len(few) > 6 and not {example.id for example in crowd} & set(ids(few))
    assert max(example.length for example in crowd) <= few[-1].length


def test_data_on_a_disk_is_looked_at_in_a_few_places():
    class Counted(list):
        reads = 0

        def __getitem__(self, place):
            Counted.reads += 1
            return super().__getitem__(place)

    class Kept(tuple):
        pass

    data = Counted(examples([1] * 5000, target=[np.int64(number >= 2500) for number in range(5000)]))
    spooled = type("Spooled", (), {"__len__": lambda self: len(data), "__getitem__": lambda self, place: data[place]})()
    chosen = telling_examples(spooled, 100)
    assert Counted.reads < 20 and {int(example.fields["target"]) for example in chosen} == {0, 1}


def test_outputs_are_held_against_the_loss_in_a_batch():
    def outputs(model, batch):
        values = model(batch[0])
        return whence.tasks.Outputs(values, torch.zeros(len(values), dtype=torch.long), batch[1], "categorical")

    task = whence.Custom(
        network(),
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        outputs=outputs,
    )
    data = rows(6, lambda number: number % 3)
    with pytest.raises(BadInput, match="outputs whose likelihood gives example '.' a loss of"):
        whence.attribute(task, data, data[:1], method="ekfac", runtime=QUIET)

"""Small models, one for each thing that capture has to get right, each with its task and examples, in float64."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import whence


class Sequences(nn.Module):
    """(B, T, 6) -> (B, 3) through a body and a mean over time."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, inputs):
        return self.body(inputs).mean(1)


class Images(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, inputs):
        return self.body(inputs).flatten(2).mean(2)


class Twice(nn.Module):
    """One layer applied twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        return self.head(torch.tanh(self.again(torch.tanh(self.again(hidden))))).mean(1)


class Bottleneck(nn.Module):
    """Two layers that share their weight and have biases of their own."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.right.weight = self.left.weight

    def forward(self, inputs):
        return self.head(torch.tanh(self.right(torch.tanh(self.left(inputs))))).mean(1)


class Scaled(nn.Module):
    """A parameter of a module that no rule covers."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain, self.head = nn.Linear(6, 5), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(torch.tanh(self.layer(inputs) * self.gain)).mean(1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        hidden = checkpoint(lambda x: torch.tanh(self.second(x)), hidden, use_reentrant=self.reentrant)
        return self.head(hidden).mean(1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = self.first(inputs)
        hidden += 1.0
        hidden.mul_(2.0)
        return self.second(torch.relu_(hidden)).mean(1)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.left, self.head = nn.Embedding(7, 4, padding_idx=0), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, ids, values):
        return self.head(torch.tanh(self.left(values).mean(1) + self.table(ids).mean(1)))


class Flattening(nn.Module):
    """Folds positions into the batch axis, as some mixture-of-experts models do."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        flat = torch.tanh(self.inner(inputs.flatten(0, 1)))
        return self.head(flat.view(*inputs.shape[:2], -1)).mean(1)


class OldRMSNorm(nn.Module):
    """As in the Llama family: a class of its own with the name of its epsilon."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width)), 1e-6

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


def _sequence_models():
    return {
        "linear": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))),
        "inplace_relu": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))),
        "dropout": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))),
        "layer_norm": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))),
        "layer_norm_no_bias": lambda: Sequences(nn.Sequential(nn.LayerNorm(6, bias=False), nn.Linear(6, 3))),
        "rms_norm": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3))),
        "own_rms_norm": lambda: Sequences(nn.Sequential(nn.Linear(6, 5), OldRMSNorm(5), nn.Linear(5, 3))),
        "batch_norm": lambda: Images(nn.Sequential(nn.Conv1d(4, 5, 1), nn.BatchNorm1d(5), nn.Conv1d(5, 3, 1))),
        "applied_twice": Twice,
        "tied": Bottleneck,
        "checkpoint": lambda: Checkpointed(False),
        "checkpoint_reentrant": lambda: Checkpointed(True),
        "in_place": InPlace,
        "flattening": Flattening,
        "lone_parameter": Scaled,
        "attention": lambda: Sequences(nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3))),
    }


def _image_models():
    return {
        "conv2d": lambda: Images(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, bias=False))),
        "conv2d_stride": lambda: Images(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0))),
        "conv2d_dilation": lambda: Images(nn.Conv2d(2, 3, 3, dilation=2, padding="same")),
        "conv2d_even_same": lambda: Images(nn.Conv2d(2, 3, (2, 4), padding="same")),
        "conv2d_groups": lambda: Images(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 1))),
        "conv2d_depthwise": lambda: Images(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2, bias=False), nn.Conv2d(2, 3, 1))),
        "conv2d_valid": lambda: Images(nn.Conv2d(2, 3, 3, padding="valid")),
    }


def _conv1d_models():
    return {
        "conv1d": lambda: Images(nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2), nn.Tanh(), nn.Conv1d(6, 3, 1))),
        "conv1d_groups": lambda: Images(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2, dilation=2), nn.Conv1d(6, 3, 1))),
    }


NAMES = (*_sequence_models(), *_image_models(), *_conv1d_models(), "two_inputs", "regression", "gpt2", "llama", "bert")
FUNCTIONAL = {"lone_parameter", "attention"}


def make(name: str, count: int = 5):
    """Task and dataset of one zoo model, float64, seeded by its name."""
    torch.manual_seed(sum(map(ord, name)))
    options = {"functional": name in FUNCTIONAL}
    labels = torch.randint(3, (count,)).tolist()
    if name in ("gpt2", "llama"):
        return _language_model(name, count)
    if name == "bert":
        return _bert(count)
    if name == "two_inputs":
        records = [
            {"ids": torch.randint(7, (4,)), "values": torch.randn(3, 6, dtype=torch.float64), "label": label}
            for label in labels
        ]
        task = whence.Classification(TwoInputs().double())
        return task, task.prepare(records)
    if name == "regression":
        body = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        task = whence.Regression(body)
        rows = [(torch.randn(6, dtype=torch.float64), torch.randn(2, dtype=torch.float64)) for _ in labels]
        return task, task.prepare(rows)
    shapes = ((_sequence_models(), (4, 6)), (_image_models(), (2, 5, 6)), (_conv1d_models(), (4, 9)))
    for models, shape in shapes:
        if name in models:
            task = whence.Classification(models[name]().double(), **options)
            shape = (4, 9) if name == "batch_norm" else shape
            return task, task.prepare([(torch.randn(shape, dtype=torch.float64), label) for label in labels])
    raise KeyError(name)


def _language_model(name: str, count: int):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if name == "gpt2":
        config = GPT2Config(
            n_layer=2, n_embd=8, n_head=2, vocab_size=30, n_positions=16, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            num_hidden_layers=1, hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=30, max_position_embeddings=16, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    task = whence.CausalLM(model.double(), tokenizer=None)
    records = []
    for number in range(count):
        ids = torch.randint(30, (4 + 2 * (number % 7),)).tolist()
        records.append({"input_ids": ids, "labels": [-100] * (number % 3 + 1) + ids[number % 3 + 1 :]})
    return task, task.prepare(records)


def _bert(count: int):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        num_hidden_layers=1, hidden_size=8, intermediate_size=12, num_attention_heads=2, vocab_size=30,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    task = whence.Classification(BertForSequenceClassification(config).double())
    records = [
        {
            "input_ids": torch.randint(1, 30, (4 + number,)),
            "attention_mask": torch.ones(4 + number, dtype=torch.long),
            "label": number % 3,
        }
        for number in range(count)
    ]
    return task, task.prepare(records)

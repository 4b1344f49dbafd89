"""Small models of the families that people train, each with its task and records, in float64 and seeded.

`tests/test_families.py` holds each against autograd, and docs/coverage.md is written from this list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

import whence

_TEXT = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30,
    "max_position_embeddings": 16,
}  # fmt: skip
_NO_MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_GROUPED = {**_TEXT, **_NO_MARKS, "num_key_value_heads": 1}


class WideArithmetic(TorchFunctionMode):
    """Float64 where a model asks for float32, as the norm layers of Hugging Face do, so that both sides of a test are exact."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = torch.Tensor.double if function is torch.Tensor.float else function
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return function(*wide, **named)


@dataclass(frozen=True)
class Family:
    """How to make one model.

    Args:
        group: Heading in docs/coverage.md.
        title: What the model is, for people.
        make: Gives task and records.
        hf: Whether it needs transformers.
    """

    group: str
    title: str
    make: Callable[[], tuple[Any, list[Any]]]
    hf: bool = False


def make(name: str):
    """Task and dataset of one family."""
    torch.manual_seed(sum(map(ord, name)))
    task, records = FAMILIES[name].make()
    return task, task.prepare(records)


class TokenViT(nn.Module):
    """A vision transformer as it is written by hand: convolution for patches, class token, position table, packed projections."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 2, stride=2)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, images):
        patches = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.block(tokens)[:, 0]))


class Recurrent(nn.Module):
    """A recurrent layer over token ids, and the mean of its states."""

    def __init__(self, kind, **options):
        super().__init__()
        self.table = nn.Embedding(12, 5)
        self.layer = kind(5, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 3)

    def forward(self, ids):
        return self.head(self.layer(self.table(ids))[0].mean(1))


class Experts(nn.Module):
    """A mixture written by hand: each expert is an ordinary layer that is given the positions routed to it."""

    def __init__(self):
        super().__init__()
        self.first, self.router = nn.Linear(6, 8), nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 8)) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs):
        flat = torch.tanh(self.first(inputs)).flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            mixed = mixed.index_add(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return self.head((flat + mixed).view(*inputs.shape[:2], -1)).mean(1)


class Doubled(nn.Module):
    """Two heads on one body, each with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, inputs):
        hidden = torch.tanh(self.body(inputs))
        return self.kind(hidden), self.size(hidden)


def _doubled():
    def loss(model, batch):
        kinds, sizes = model(batch["inputs"])
        return nn.functional.cross_entropy(kinds, batch["kind"], reduction="none") + 0.5 * (sizes - batch["size"]).square().sum(
            1
        )

    records = [
        {"inputs": _normal(6), "kind": torch.tensor(number % 3), "size": _normal(2)} for number in range(4)
    ]  # fmt: skip
    return whence.Custom(Doubled().double(), loss), records


def _group_norm():
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(6, 6))
    return _images(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))


def _batch_norm():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        nn.BatchNorm1d(5), nn.Linear(5, 3),
    )  # fmt: skip
    return _images(_with_statistics(model))


def _with_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def _images(model, **options):
    records = [(_normal(2, 6, 6), number % 3) for number in range(4)]
    return whence.Classification(model.double(), **options), records


def _pixels(kind, config, size=8, **options):
    def build():
        import transformers

        made = getattr(transformers, f"{kind}Config")(num_labels=3, num_channels=2, **config)
        model = _with_statistics(getattr(transformers, f"{kind}ForImageClassification")(made))
        records = [{"pixel_values": _normal(2, size, size), "label": number % 3} for number in range(3)]
        return whence.Classification(model.double(), **options), records

    return build


def _recurrent(kind, **options):
    def build():
        records = [(torch.randint(12, (6,)), number % 3) for number in range(4)]
        return whence.Classification(Recurrent(kind, **options).double(), functional=True), records

    return build


def _experts():
    records = [(_normal(5, 6), number % 3) for number in range(4)]
    return whence.Classification(Experts().double(), functional=["experts.*"]), records


def _language(kind, config, **options):
    def build():
        import transformers

        made = getattr(transformers, f"{kind}Config")(**config)
        # The grouped matrix products of PyTorch know no float64.
        made._experts_implementation = "eager"
        model = getattr(transformers, f"{kind}ForCausalLM")(made)
        records = [{"input_ids": torch.randint(30, (3 + 2 * number,)).tolist()} for number in range(4)]
        return whence.CausalLM(model.double(), None, **options), records

    return build


def _encoder(kind, config, **options):
    def build():
        import transformers

        model = getattr(transformers, f"{kind}ForSequenceClassification")(
            getattr(transformers, f"{kind}Config")(num_labels=3, **config)
        )
        records = [
            {"input_ids": torch.randint(2, 30, (3 + n,)), "attention_mask": torch.ones(3 + n, dtype=torch.long), "label": n % 3}
            for n in range(4)
        ]
        return whence.Classification(model.double(), **options), records

    return build


def _translation(kind, config, cls=None, **inputs):
    """An encoder-decoder; `inputs` are the encoder's, if not ids."""

    def build():
        import transformers

        made = getattr(transformers, f"{kind}Config")(decoder_start_token_id=0, **config)

        def loss(model, batch):
            given = {name: batch[name] for name in inputs or ("input_ids",)}
            logits = model(**given, decoder_input_ids=batch["told"]).logits
            return nn.functional.cross_entropy(logits.transpose(1, 2), batch["wanted"], reduction="none").sum(1)

        names = ("told", "wanted") if inputs else ("input_ids", "told", "wanted")
        records = [
            {name: torch.randint(3, 30, (5,)) for name in names} | {name: _normal(*shape) for name, shape in inputs.items()}
            for _ in range(4)
        ]
        model = getattr(transformers, cls or f"{kind}ForConditionalGeneration")(made)
        return whence.Custom(model.double(), loss), records

    return build


class PlacesGPT(nn.Module):
    """Places as they are written by hand: a table that is given `arange(length)`, and its rows added to those of all examples."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places, self.norm, self.head = (
            nn.Embedding(30, 8),
            nn.Embedding(16, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 30),
        )

    def forward(self, ids):
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.norm(hidden)).cumsum(1))


def _by_hand(examples=4, length=8):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["ids"]).transpose(1, 2), batch["wanted"], reduction="none").sum(1)

    records = [{name: torch.randint(30, (length,)) for name in ("ids", "wanted")} for _ in range(examples)]
    return whence.Custom(PlacesGPT().double(), loss), records


def _masked():
    import transformers

    model = transformers.BertForMaskedLM(transformers.BertConfig(**_TEXT))
    records = [{"input_ids": torch.randint(4, 30, (3 + 2 * number,)).tolist()} for number in range(4)]
    return whence.MaskedLM(model.double(), None, hiding=whence.tasks.Hiding(mask_id=3, share=0.5)), records


def _normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


_GPT = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None}
_VIT = {key: value for key, value in _TEXT.items() if key not in ("vocab_size", "max_position_embeddings")}
_MOE = {"num_experts_per_tok": 2}
_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 30, "dropout_rate": 0.0}
_BART = {
    "vocab_size": 30, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip

FAMILIES = {
    "cnn_group_norm": Family("Images", "CNN with GroupNorm and grouped convolutions", _group_norm),
    "cnn_batch_norm": Family("Images", "CNN with frozen BatchNorm", _batch_norm),
    "vit_packed": Family("Images", "ViT by hand: nn.MultiheadAttention, class token", lambda: _images(TokenViT(), functional=True)),
    "vit": Family("Images", "ViT", _pixels("ViT", {**_VIT, "image_size": 8, "patch_size": 4}, functional=True), hf=True),
    "resnet": Family(
        "Images", "ResNet", _pixels("ResNet", {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1]}, 12), hf=True
    ),
    "swin": Family(
        "Images",
        "Swin: windows on the batch axis",
        _pixels(
            "Swin",
            {"image_size": 16, "patch_size": 2, "embed_dim": 4, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
            16,
            functional=True,
        ),
        hf=True,
    ),
    "convnext": Family(
        "Images",
        "ConvNeXt",
        _pixels("ConvNext", {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "patch_size": 2}, functional=True),
        hf=True,
    ),
    "lstm": Family("Recurrent", "LSTM, two layers", _recurrent(nn.LSTM, num_layers=2)),
    "gru": Family("Recurrent", "GRU, both directions", _recurrent(nn.GRU, bidirectional=True)),
    "rnn": Family("Recurrent", "RNN", _recurrent(nn.RNN)),
    "experts": Family("Mixtures of experts", "by hand, an nn.Linear per expert", _experts),
    "mixtral": Family(
        "Mixtures of experts",
        "Mixtral",
        _language("Mixtral", {**_GROUPED, **_MOE, "num_local_experts": 4}, functional=True),
        hf=True,
    ),
    "qwen2_moe": Family(
        "Mixtures of experts",
        "Qwen2-MoE",
        _language(
            "Qwen2Moe",
            {**_GROUPED, **_MOE, "num_experts": 4, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 6},
            functional=True,
        ),
        hf=True,
    ),
    "gemma": Family("Language models", "Gemma: scaled embedding, tied head", _language("Gemma", {**_GROUPED, "head_dim": 4}), hf=True),
    "mistral": Family(
        "Language models", "Mistral: grouped queries, sliding window", _language("Mistral", {**_GROUPED, "sliding_window": 4}), hf=True
    ),
    "phi": Family("Language models", "Phi", _language("Phi", {**_TEXT, **_NO_MARKS, "partial_rotary_factor": 1.0}), hf=True),
    "phi3": Family("Language models", "Phi-3: fused qkv and gate", _language("Phi3", _GROUPED), hf=True),
    "gpt_neox": Family("Language models", "GPT-NeoX: fused qkv", _language("GPTNeoX", {**_TEXT, **_NO_MARKS}), hf=True),
    "qwen2": Family("Language models", "Qwen2", _language("Qwen2", _GROUPED), hf=True),
    "qwen3": Family("Language models", "Qwen3: norms on queries and keys", _language("Qwen3", {**_GROUPED, "head_dim": 4}), hf=True),
    "opt": Family(
        "Language models",
        "OPT",
        _language(
            "OPT",
            {
                "hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30,
                "max_position_embeddings": 16, "word_embed_proj_dim": 8, **_NO_MARKS,
            },
        ),
        hf=True,
    ),  # fmt: skip
    "places": Family("Language models", "by hand, places without an axis for the examples", _by_hand),
    "bloom": Family(
        "Language models", "Bloom", _language("Bloom", {**_GPT, "hidden_size": 8, "n_layer": 1, "n_head": 2}), hf=True
    ),
    "falcon": Family(
        "Language models",
        "Falcon: fused multi-query",
        _language("Falcon", {**_GPT, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}),
        hf=True,
    ),
    "mamba": Family(
        "Language models",
        "Mamba: weights used outside their layers",
        _language("Mamba", {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 30, **_NO_MARKS}, functional=True),
        hf=True,
    ),
    "roberta": Family("Encoders", "RoBERTa", _encoder("Roberta", {**_TEXT, "pad_token_id": 1}), hf=True),
    "distilbert": Family(
        "Encoders",
        "DistilBERT",
        _encoder("DistilBert", {"vocab_size": 30, "max_position_embeddings": 16, "n_layers": 1, "n_heads": 2, "dim": 8, "hidden_dim": 12}),
        hf=True,
    ),
    "masked_bert": Family("Encoders", "BERT as a masked language model", _masked, hf=True),
    "mpnet": Family("Encoders", "MPNet: distances between places", _encoder("MPNet", _TEXT), hf=True),
    "t5": Family("Encoder-decoders", "T5", _translation("T5", _T5), hf=True),
    "umt5": Family("Encoder-decoders", "UMT5: distances in every layer", _translation("UMT5", _T5), hf=True),
    "longt5": Family("Encoder-decoders", "LongT5, local attention", _translation("LongT5", {**_T5, "local_radius": 3}), hf=True),
    "bart": Family("Encoder-decoders", "BART", _translation("Bart", _BART), hf=True),
    "blenderbot": Family("Encoder-decoders", "Blenderbot", _translation("Blenderbot", _BART), hf=True),
    "marian": Family("Encoder-decoders", "Marian", _translation("Marian", _BART, "MarianMTModel"), hf=True),
    "whisper": Family(
        "Encoder-decoders",
        "Whisper",
        _translation(
            "Whisper",
            {**{k: v for k, v in _BART.items() if not k.startswith("max")}, "num_mel_bins": 4, "max_source_positions": 6,
             "max_target_positions": 8, "begin_suppress_tokens": None},
            input_features=(4, 12),
        ),
        hf=True,
    ),
    "two_heads": Family("Several losses", "a class and two sizes, one loss added to the other", _doubled),
}  # fmt: skip


class Layered(nn.Module):
    """One layer, and a squared sum of whatever it gives."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        found = self.layer(*[inputs] * 3) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(inputs)
        return (found[0] if isinstance(found, tuple) else found).flatten(1)


def make_layer(title: str):
    """Task and dataset of one layer alone; with `functional=True`, so that none is refused."""
    torch.manual_seed(sum(map(ord, title)))
    layer, shape = LAYERS[title]
    model = _with_statistics(Layered(layer()).double())
    for parameter in model.parameters():  # scales of one and shifts of zero would hide mistakes
        nn.init.normal_(parameter)
    task = whence.Custom(model, lambda model, inputs: model(inputs).square().sum(1), functional=True)
    return task, task.prepare([torch.randint(6, (4,)) if shape is None else _normal(*shape) for _ in range(3)])


def _hf(path: str, *arguments, **options):
    def build():
        import importlib

        module, name = path.rsplit(".", 1)
        return getattr(importlib.import_module(f"transformers.{module}"), name)(*arguments, **options)

    return build


LAYERS = {
    "nn.Linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "nn.Conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=1), (4, 9)),
    "nn.Conv2d": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "nn.Conv2d with padding that is not zeros": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "nn.Conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
    "nn.ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 3, 3)),
    "nn.Embedding": (lambda: nn.Embedding(6, 3, padding_idx=0), None),
    "nn.LayerNorm": (lambda: nn.LayerNorm(4), (5, 4)),
    "nn.RMSNorm": (lambda: nn.RMSNorm(4), (5, 4)),
    "nn.GroupNorm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "nn.BatchNorm1d, frozen": (lambda: nn.BatchNorm1d(4), (4,)),
    "nn.BatchNorm2d, frozen": (lambda: nn.BatchNorm2d(4), (4, 3, 3)),
    "nn.BatchNorm3d, frozen": (lambda: nn.BatchNorm3d(4), (4, 2, 2, 2)),
    "nn.InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    "nn.PReLU": (lambda: nn.PReLU(4), (4, 5)),
    "nn.MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (5, 4)),
    "nn.LSTM": (lambda: nn.LSTM(4, 3, batch_first=True), (5, 4)),
    "nn.GRU": (lambda: nn.GRU(4, 3, batch_first=True), (5, 4)),
    "nn.RNN": (lambda: nn.RNN(4, 3, batch_first=True), (5, 4)),
    "nn.EmbeddingBag": (lambda: nn.EmbeddingBag(6, 3, mode="mean"), None),
    "nn.Linear under weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (5, 4)),
    "nn.Linear under spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (5, 4)),
    "nn.Linear, orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 3)), (5, 4)),
    "Hugging Face Conv1D": (_hf("pytorch_utils.Conv1D", 3, 4), (5, 4)),
    "Hugging Face LlamaRMSNorm and its like": (_hf("models.llama.modeling_llama.LlamaRMSNorm", 4), (5, 4)),
    "Hugging Face GemmaRMSNorm": (_hf("models.gemma.modeling_gemma.GemmaRMSNorm", 4), (5, 4)),
    "Hugging Face FalconLinear": (_hf("models.falcon.modeling_falcon.FalconLinear", 4, 3), (5, 4)),
    "Hugging Face scaled embedding": (
        _hf("models.gemma.modeling_gemma.GemmaTextScaledWordEmbedding", 6, 3, 0, embed_scale=2.0), None,
    ),
    "Hugging Face T5LayerNorm": (_hf("models.t5.modeling_t5.T5LayerNorm", 4), (5, 4)),
}  # fmt: skip

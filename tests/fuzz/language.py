"""Small transformers of Hugging Face: one layer of width 8 over a vocabulary of 16 tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "LABELS", "MASK", "PAD_ID", "TOKENS", "Family"]

TOKENS, LABELS = 16, 3
PAD_ID, MASK = 1, 2

_SIZE = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": TOKENS}
_MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD_ID, "max_position_embeddings": 16}
_GROUPED = {**_SIZE, **_MARKS, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        task: Which of whence's tasks.
        make: Makes the model.
    """

    task: str
    make: Callable[[], Any]


def _made(head: str, kind: str, **options: Any) -> Callable[[], Any]:
    def make():
        import transformers

        config = transformers.AutoConfig.for_model(kind, **options)
        return getattr(transformers, f"AutoModelFor{head}").from_config(config)

    return make


def _causal(kind: str, **options: Any) -> Family:
    return Family("causal", _made("CausalLM", kind, **options))


def _masked(kind: str, **options: Any) -> Family:
    return Family("masked", _made("MaskedLM", kind, **options))


def _classes(kind: str, **options: Any) -> Family:
    return Family("classification", _made("SequenceClassification", kind, num_labels=LABELS, **options))


_GPT2 = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": TOKENS, "n_positions": 16, **_MARKS}
_MAMBA = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": TOKENS, "state_size": 3, **_MARKS}
_EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}

FAMILIES: dict[str, Family] = {
    "gpt2": _causal("gpt2", **_GPT2),
    "gpt2, untied": _causal("gpt2", **_GPT2, tie_word_embeddings=False),
    "llama": _causal("llama", **_GROUPED),
    "llama, tied, with biases": _causal("llama", **_GROUPED, tie_word_embeddings=True, attention_bias=True),
    "qwen3": _causal("qwen3", **_GROUPED, head_dim=4),
    "gemma": _causal("gemma", **_GROUPED, head_dim=4),
    "mixtral": _causal("mixtral", **_GROUPED, **_EXPERTS),
    "gpt_neox": _causal("gpt_neox", **_SIZE, **_MARKS),
    "opt": _causal("opt", **_SIZE, **_MARKS, ffn_dim=12, word_embed_proj_dim=8),
    "phi": _causal("phi", **_GROUPED),
    "mamba": _causal("mamba", **_MAMBA),
    "bert, masked": _masked("bert", **_SIZE, **_MARKS),
    "roberta, masked": _masked("roberta", **{**_SIZE, **_MARKS, "max_position_embeddings": 20}),
    "distilbert, masked": _masked("distilbert", dim=8, hidden_dim=12, n_layers=1, n_heads=2, vocab_size=TOKENS, **_MARKS),
    "bert": _classes("bert", **_SIZE, **_MARKS),
    "llama, classes": _classes("llama", **_GROUPED),
    "gpt2, classes": _classes("gpt2", **_GPT2),
}

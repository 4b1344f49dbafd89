"""Sizes of known models: what a forecast at a size that nobody has at hand starts from."""

from dataclasses import dataclass

from whence.records import Unit

__all__ = ["MODEL_SHAPES", "ModelShape"]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder of the Llama family by its sizes.

    Args:
        layers: Blocks.
        hidden: Width of the residual stream.
        intermediate: Width inside an MLP.
        key_values: Width of keys and of values, smaller than `hidden` with grouped queries.
        vocabulary: Tokens.
        is_tied: Whether head and embedding share a weight.
    """

    layers: int
    hidden: int
    intermediate: int
    key_values: int
    vocabulary: int
    is_tied: bool = False

    def units(self) -> list[Unit]:
        """Its weights, named as in Hugging Face's implementation, so that patterns of names mean the same."""
        wide, narrow, inner = self.hidden, self.key_values, self.intermediate
        sides = {"q": (wide, wide), "k": (narrow, wide), "v": (narrow, wide), "o": (wide, wide)}
        attention = {f"self_attn.{name}_proj": side for name, side in sides.items()}
        mlp = {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
        norms = {"input_layernorm": (1, wide), "post_attention_layernorm": (1, wide)}
        shapes = {"model.embed_tokens.weight": (self.vocabulary, wide)}
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}.weight": side for name, side in (attention | mlp | norms).items()}
        shapes["model.norm.weight"] = (1, wide)
        if not self.is_tied:
            shapes["lm_head.weight"] = (self.vocabulary, wide)
        return [Unit(name, *side, (name,)) for name, side in shapes.items()]

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(unit.outputs * unit.inputs for unit in self.units())

    def network_operations(self, tokens: int) -> float:
        """Operations of a forward pass and of the backward pass to every layer's output, per token.

        Two per weight forth and two back: weights are frozen, so no gradient of a weight is made on the way. Looking up an embedding is
        free, the head is a product. Attention multiplies each token with all `tokens` of its example.
        """
        products = self.parameters - (0 if self.is_tied else self.vocabulary * self.hidden)
        return 4.0 * products + 12.0 * self.layers * self.hidden * tokens


MODEL_SHAPES = {
    "llama-1b": ModelShape(layers=16, hidden=2048, intermediate=8192, key_values=512, vocabulary=128256, is_tied=True),
    "llama-8b": ModelShape(layers=32, hidden=4096, intermediate=14336, key_values=1024, vocabulary=128256),
    "llama-70b": ModelShape(layers=80, hidden=8192, intermediate=28672, key_values=1024, vocabulary=128256),
    "olmo-1b": ModelShape(layers=16, hidden=2048, intermediate=8192, key_values=2048, vocabulary=100352),
    "olmo-7b": ModelShape(layers=32, hidden=4096, intermediate=11008, key_values=4096, vocabulary=100352),
    "olmo-32b": ModelShape(layers=64, hidden=5120, intermediate=27648, key_values=1024, vocabulary=100352),
}

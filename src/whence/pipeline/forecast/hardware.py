"""Sizes of known models, and rates of what computes on them: what a forecast at a size that nobody has at hand starts from."""

from dataclasses import dataclass

from whence.errors import BadInput, UnknownOption
from whence.records import Unit

__all__ = ["GPUS", "MODEL_SHAPES", "Cluster", "ModelShape"]

# Of a dense product in bfloat16, without sparsity, in TFLOP/s, and memory in GB, by the makers' data sheets.
GPUS = {"a100": (312.0, 80.0), "h100": (989.0, 80.0), "h200": (989.0, 141.0), "b200": (2250.0, 180.0)}


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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What computes and reads.

    Args:
        gpus: Devices, one rank each.
        gpu: Name in `GPUS`, for its arithmetic and memory.
        tflops: Instead of the name's, operations a second of a large product on one device, in 10^12; 0 takes the name's.
        utilisation: Share of that which a build reaches. At .4 the published 8B rates of LoGra come out within 20 % (docs/scale.md).
        disk_gbps: What each rank reads and writes, in 10^9 bytes a second.
        network_gbps: What each rank sends, in the same unit.

    Raises:
        BadInput: If a number is not positive.
        UnknownOption: If there is no such device.
    """

    gpus: int = 1
    gpu: str = "h100"
    tflops: float = 0.0
    utilisation: float = 0.4
    disk_gbps: float = 2.0
    network_gbps: float = 10.0

    def __post_init__(self):
        for name in ("gpus", "utilisation", "disk_gbps", "network_gbps"):
            if getattr(self, name) <= 0 or self.tflops < 0:
                bad = name if getattr(self, name) <= 0 else "tflops"
                raise BadInput(found=f"{bad}={getattr(self, bad)}", needed="a positive number", do="correct it")
        if self.gpu not in GPUS:
            raise UnknownOption(
                found=f"gpu={self.gpu!r}", needed=f"one of: {', '.join(GPUS)}", do="pick one, or give its tflops"
            )

    @property
    def operations_per_second(self) -> float:
        """Of one device, in a build."""
        return (self.tflops or GPUS[self.gpu][0]) * 1e12 * self.utilisation

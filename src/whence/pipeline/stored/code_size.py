"""How large the code of a store may be, what learning it takes, and from which documents it is learned.

Axes: K numbers along axes, R mixtures of what they leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whence.compress import TURNED
from whence.curvature import SKETCHED, Code, kept_numbers, most_bits, rest_bits
from whence.data import spread_places
from whence.methods import method_named
from whence.records import Unit
from whence.settings import BuildConfig, FitConfig
from whence.store import bits_named

__all__ = [
    "AXES_BYTES",
    "STORED_TYPES",
    "CodeSize",
    "code_axes_bytes",
    "code_choices",
    "code_size",
    "fits",
    "held_back_places",
    "sample_places",
    "stand_ins",
    "stored_type",
]

AXES_BYTES = 256 << 20
"""Axes are shared by all rows of a store and take at most this, by fewer bits a number first and then by fewer coordinates; with
`shared_bytes` all that is shared takes at most that, by fewer coordinates before fewer axes."""
# Of the sample's whitened rows, held at once: as float32 up to the first, as bfloat16 beyond.
_WIDE_BYTES, _SAMPLE_BYTES = 2 << 30, 4 << 30
_FEWEST_SAMPLES = 256
# Of so many times more documents than the sample holds, what is kept of its members is worth less than axes that more documents taught.
_MANY, _STREAMED = 8, 8192
# Where shared bytes are few, coordinates are given up first: down to a sixteenth of them, but not below 65,536 where there are as many, and
# always down to a million. Then axes are given up, down to 1,024. Few coordinates hold most of a score, and documents far from every axis
# lose more (benchmarks/coordinates.py).
_SHARE_OF_COORDINATES, _FEW_COORDINATES, _MANY_COORDINATES = 1 / 16, 1 << 16, 1 << 20
_FEWEST_AXES = 1024
# In the order that codes.safetensors counts them in (docs/format.md); a budget of bytes chooses among the first five.
STORED_TYPES = ("int1", "int2", "int4", "int8", "bfloat16", "float16", "float32", "float64")
_CHOSEN, _WITH_REST = STORED_TYPES[:5], STORED_TYPES[:4]
_SCALE_BYTES, _SCALE_OF_AXES = 2, 4
# Of a coordinate's place, where not all are kept.
_PLACE_BYTES = 8
# Of a row's bits, for signs of what the axes leave.
_REST_PARTS = (0.125, 0.25, 0.5, 0.75, 0.875, 0.9375)
# Documents that nothing is learned from and sizes of code are judged on; fewer than the second say nothing.
_MOST_HELD_OUT, _FEWEST_HELD = 256, 32
# Where nothing is held out, so many of the sample are queries, along trial axes that the others teach.
_HELD_BACK = 16


@dataclass(frozen=True)
class CodeSize:
    """What learning a code takes, from sizes alone.

    Args:
        samples: Examples that the axes are learned from.
        held_out: Examples that sizes of code are judged on.
        coordinates: Of a whitened gradient that are kept.
        choices: Sizes of code.
        axes_bytes: Room for the axes and their sketches.
        is_streamed: Whether the sample is gone through twice instead of being held.
        is_halved: Whether the whitened gradients of the sample and of held-out examples are kept as bfloat16.
        sample_bytes: Of memory, for the whitened gradients of the sample and of held-out examples, and the axes made of them.
        shared_bytes: On disk, for the curvature's bases and the axes.
    """

    samples: int
    held_out: int
    coordinates: int
    choices: list[Code]
    axes_bytes: int
    is_streamed: bool
    is_halved: bool
    sample_bytes: int
    shared_bytes: int

    @property
    def row_bytes(self) -> int:
        """Of the largest code that may be chosen."""
        return max(_row_bytes(choice) for choice in self.choices)

    @property
    def slots(self) -> int:
        """Mixtures of the widest rest."""
        return max(choice.rest for choice in self.choices)


def code_choices(config: BuildConfig, most: int, *, coordinates: int = 0, axes_bytes: int = AXES_BYTES) -> list[Code]:
    """Sizes of code to choose from: the one asked for, or those that fit in the bytes.

    Args:
        config: The build's options.
        most: Numbers along axes, at most.
        coordinates: Of a whitened gradient, where documents are held out that signs of the rest can be judged on; 0 leaves the rest out.
        axes_bytes: Room for axes and their sketches, for choices with a rest.
    """
    method = method_named(config.method)
    if config.anchors is not None:
        dtype = stored_type(config)
        return [Code(len(config.anchors), dtype, bits_named(dtype))]
    if not config.bytes_per_example:
        dtype = stored_type(config)
        return [Code(min(config.rank or method.rank, most), dtype, bits_named(dtype))]
    assert isinstance(config.bytes_per_example, int)  # the config has read it
    room = 8 * (config.bytes_per_example - _SCALE_BYTES)
    sized = [(dtype, bits_named(dtype)) for dtype in _CHOSEN]
    choices = [Code(min(room // bits, most), dtype, bits) for dtype, bits in sized if bits <= room]
    room -= 8 * _SCALE_BYTES
    for dtype in _WITH_REST if coordinates else ():
        for part in _REST_PARTS:
            bits = bits_named(dtype)
            width = min(int(room * (1 - part)) // bits, most) // 8 * 8
            # Axes of a bit, and their sketches of four.
            while width * (coordinates + rest_bits(1) * (room - width * bits)) > 8 * axes_bytes:
                width -= 8
            if width:
                choices.append(Code(width, dtype, bits, room - width * bits))
    return list(dict.fromkeys(choices))


def code_size(units: Sequence[Unit], examples: int, config: BuildConfig, fit: FitConfig | None = None) -> CodeSize:
    """What a build of so many examples would take to learn its code; the fit resolved, or without its bases."""
    parameters = sum(unit.outputs * unit.inputs for unit in units)
    bases = 4 * (parameters if fit is None else kept_numbers(units, fit))
    if config.anchors is not None:
        return _anchored_size(parameters, bases, config)
    axes_bytes = max(1, int(config.shared_bytes) - bases) if config.shared_bytes else AXES_BYTES
    samples = min(examples, config.axes_examples or method_named(config.method).axes_examples)
    widest = max(choice.width for choice in code_choices(config, samples))
    fitting = 8 * axes_bytes // widest
    if config.shared_bytes:
        least = min(parameters, max(_FEW_COORDINATES, min(_MANY_COORDINATES, int(_SHARE_OF_COORDINATES * parameters))))
        widest = min(widest, max(_FEWEST_AXES, 8 * axes_bytes // parameters, 8 * (axes_bytes // least - _SCALE_OF_AXES)))
        fitting, axes_bytes = _fitting(parameters, widest, axes_bytes)
    # Coordinates give way to axes of one bit, then examples to coordinates, down to a few.
    coordinates = min(parameters, max(1, fitting), _SAMPLE_BYTES // (2 * min(samples, _FEWEST_SAMPLES)))
    at_once, axes_at_once = _SAMPLE_BYTES // (2 * coordinates), max(1, _SAMPLE_BYTES // (4 * coordinates))
    # More documents than are held go by twice, if the axes that were asked for, or those that bytes may be spent on, can be held.
    streamed = min(examples - _MOST_HELD_OUT, config.axes_examples or _STREAMED)
    is_many = streamed > at_once if config.axes_examples else examples >= _MANY * samples
    is_streamed = is_many and bool(config.bytes_per_example or widest <= axes_at_once)
    samples = streamed if is_streamed else min(samples, at_once)
    held_out = min(_MOST_HELD_OUT, examples - samples)
    held_out = held_out if held_out >= _FEWEST_HELD else 0
    most = min(samples, axes_at_once if is_streamed else samples)
    if config.shared_bytes and 4 * most * coordinates > axes_bytes:
        most = min(most, max(1, 8 * axes_bytes // _filled_up(coordinates), axes_bytes // (4 * coordinates)))
    choices = code_choices(config, most, coordinates=_filled_up(coordinates) if held_out else 0, axes_bytes=axes_bytes)
    taken = max(code_axes_bytes(choice, coordinates, axes_bytes) for choice in choices)
    slots, widest = (max(numbers) for numbers in zip(*((choice.rest, choice.width) for choice in choices), strict=True))
    wide = 4 * max(samples * SKETCHED, widest * coordinates) if is_streamed else 4 * samples * coordinates
    is_halved = wide > _WIDE_BYTES and not is_streamed
    # Streaming joins the units of held-out documents, which are then there twice.
    held_bytes = held_out * coordinates * (2 if is_halved else 8 if is_streamed else 4)
    index_bytes = _PLACE_BYTES * coordinates if coordinates < parameters else 0
    return CodeSize(
        samples, held_out, coordinates, choices, axes_bytes, is_streamed, is_halved,
        sample_bytes=(wide // 2 if is_halved else wide) + held_bytes + 4 * (samples + held_out) * slots + taken,
        shared_bytes=taken + bases + index_bytes,
    )  # fmt: skip


def _anchored_size(parameters: int, bases_bytes: int, config: BuildConfig) -> CodeSize:
    """Axes that span the gradients of anchors, all coordinates of them."""
    anchors, number_bytes = len(config.anchors), 8 if config.dtype == "float64" else 4
    axes_bytes = number_bytes * parameters * anchors
    return CodeSize(
        anchors, 0, parameters, code_choices(config, anchors), axes_bytes,
        is_streamed=False, is_halved=False, sample_bytes=2 * axes_bytes, shared_bytes=axes_bytes + bases_bytes,
    )  # fmt: skip


def stored_type(config: BuildConfig) -> str:
    """The type of a code's numbers, where no bytes decide it."""
    if config.dtype != "method":
        return config.dtype
    return "float32" if config.anchors is not None else method_named(config.method).dtype


def sample_places(examples: int, size: CodeSize) -> tuple[list[int], list[int]]:
    """Places of the examples, of so many, that a code is learned from, and of those that its size is judged on."""
    learned = spread_places(examples, size.samples)
    learned_rows = set(learned)
    others = [row for row in range(examples) if row not in learned_rows] if size.held_out else []
    return learned, [others[row] for row in spread_places(len(others), size.held_out)]


def fits(code: Code, choices: Sequence[Code], config: BuildConfig) -> bool:
    """Whether a code is one that a build with these options might have chosen."""
    if code.rest:
        return 0 < _row_bytes(code) <= int(config.bytes_per_example)
    return any(choice.dtype == code.dtype and choice.width >= code.width for choice in choices)


def stand_ins(documents: int) -> list[int]:
    """Places of the documents, of so many, that stand in for queries: 16, or an eighth where there are fewer; none for one alone."""
    count = min(_HELD_BACK, documents // 8)
    return spread_places(documents, count) if count > 1 else []


def held_back_places(documents: int) -> list[int]:
    """Places of the documents of a sample that trial axes are not learned from: those that stand in for queries, or one."""
    return stand_ins(documents) or spread_places(documents, 1)


def _row_bytes(choice: Code) -> int:
    rest = choice.rest // 8 + _SCALE_BYTES if choice.rest else 0
    scale = _SCALE_BYTES if choice.bits <= 8 else 0
    return -(-choice.width * choice.bits // 8) + scale + rest


def code_axes_bytes(choice: Code, coordinates: int, most: int) -> int:
    """Of the axes of a code and their sketches, in the most bits that fit.

    Args:
        choice: The code.
        coordinates: Of a whitened gradient.
        most: Room.
    """
    sketches = choice.width * choice.rest * rest_bits(1) // 8
    bits = most_bits(coordinates, choice.width, most - sketches)
    rows = coordinates if bits == 32 else _filled_up(coordinates)
    return rows * (choice.width * bits // 8 + _SCALE_OF_AXES) + choice.width * choice.rest * rest_bits(bits) // 8


def _fitting(parameters: int, width: int, axes_bytes: int) -> tuple[int, int]:
    """Coordinates of so many axes of one bit that fit, and the bytes that are left for the axes' numbers."""
    if 4 * parameters * width <= axes_bytes:
        return parameters, axes_bytes
    # Rounded axes have a scale for every coordinate, and where not all are kept its place is.
    besides = _SCALE_OF_AXES + (_PLACE_BYTES if 8 * axes_bytes < parameters * (width + 8 * _SCALE_OF_AXES) else 0)
    fitting = 8 * axes_bytes // (width + 8 * besides)
    if fitting < TURNED:  # not one square of them: numbers as they are take less
        fitting, besides = axes_bytes // (4 * width + _PLACE_BYTES), _PLACE_BYTES
    else:
        fitting = fitting // TURNED * TURNED
    return fitting, max(1, axes_bytes - besides * min(fitting, _filled_up(parameters)))


def _filled_up(coordinates: int) -> int:
    """Coordinates of rounded axes, which are turned in squares."""
    return -(-coordinates // TURNED) * TURNED

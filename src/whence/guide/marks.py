"""The mask file: which tokens of which training examples to suppress.

Axes: B examples, T tokens.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, StoreCorrupt
from whence.store.files import read_lines, write_bytes
from whence.strict_json import record_of

__all__ = ["Marked", "Marks", "open_marks"]

_FORMAT = "whence marks 1"
# In the first line, the checksum of everything else.
_SEAL = "seal"


@dataclass(frozen=True)
class Marked:
    """One training example with marked tokens.

    Args:
        id: Its id.
        length: Its number of tokens.
        positions: Which tokens are marked, counted from 0, ascending.
        tokens: Their token ids, so that another tokenization is noticed.
        rank: R of the example.
        above: Its tokens above the threshold.
        sum: Their scores, added up.
    """

    id: str
    length: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    rank: float
    above: int
    sum: float


@dataclass(frozen=True)
class Marks:
    """Marked tokens of a training set, by id of the example.

    Args:
        examples: Those with marks, highest rank first.
        about: What was scored and how: method, threshold, quantile, window, budget, floor, why no more were marked, number of examples and
            of scored tokens, fingerprint.
    """

    examples: Mapping[str, Marked]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(marked.positions) for marked in self.examples.values())

    def rows(self, ids: Sequence[str], input_ids: Tensor, *, padding: str = "right") -> Tensor:
        """The marks of a batch.

        Args:
            ids: Of its examples; one that is not known has no marks.
            input_ids: Its token ids, shape (B, T).
            padding: Side on which it is padded, "right" or "left".

        Returns:
            True at marked tokens, in the places of the labels, shape (B, T), on the same device.

        Raises:
            BadInput: If there is no such side, there are not as many ids as rows, or the tokens of an example are not those that were marked.
        """
        if padding not in ("right", "left") or len(ids) != len(input_ids):
            raise BadInput(
                found=f"padding={padding!r} and {len(ids)} ids for {len(input_ids)} rows",
                needed="padding 'right' or 'left', and an id for every row",
                do="correct it",
            )
        marks_BT = torch.zeros_like(input_ids, dtype=torch.bool)
        width = input_ids.shape[1]
        for row, name in enumerate(ids):
            marked = self.examples.get(name)
            if marked is None:
                continue
            first = 0 if padding == "right" else width - marked.length
            positions = torch.tensor(marked.positions, device=input_ids.device) + first
            if marked.length > width or input_ids[row, positions].tolist() != list(marked.tokens):
                raise BadInput(
                    found=f"other tokens in the example {name!r} than those that were marked",
                    needed=f"its {marked.length} tokens as they were scored, padded on the {padding}",
                    do="tokenize with the same tokenizer and cut long texts the same way, or correct padding",
                )
            marks_BT[row, positions] = True
        return marks_BT

    def save(self, path: str | Path) -> None:
        """Write the mask file: JSON lines, the first one about the whole, then one per example with marks; whole or not at all."""
        head = {"format": _FORMAT, **self.about}
        lines = [asdict(marked) for marked in self.examples.values()]
        texts = map(json.dumps, [head | {_SEAL: _seal_of(head, lines)}, *lines])
        write_bytes(Path(path), ["\n".join([*texts, ""]).encode()])


def open_marks(path: str | Path) -> Marks:
    """Read a mask file.

    Args:
        path: What `Marks.save` or `whence guide` wrote.

    Returns:
        The marks.

    Raises:
        BadInput: If there is no such file.
        StoreCorrupt: If it is not one.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise BadInput(found=f"no mask file at {path}", needed="marks.jsonl, which `whence guide` writes", do="check the path")
    try:
        return _parsed(read_lines(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            found=f"{path}, which is no mask file ({error})", needed=f"JSON lines of the format {_FORMAT!r}", do="make it again"
        ) from error


def _parsed(lines: Iterator[Any]) -> Marks:
    """What the lines of a mask file say.

    Raises:
        ValueError: If they say something else; as do TypeError and KeyError.
    """
    head = next(lines, None)
    if not isinstance(head, dict) or head.pop("format", None) != _FORMAT:
        raise ValueError("its first line does not say so")
    rest = list(lines)
    seal = head.pop(_SEAL, None)
    if seal is not None and seal != _seal_of({"format": _FORMAT, **head}, rest):  # other programs write none
        raise ValueError("it is not what was written")
    examples: dict[str, Marked] = {}
    for line in rest:
        marked = record_of(Marked, line)
        ends = [-1, *marked.positions, marked.length]
        if len(marked.positions) != len(marked.tokens) or any(start >= other for start, other in pairwise(ends)):
            raise ValueError(f"{marked.id[:80]!r} has marks outside of its tokens, or out of order")
        if marked.id in examples:
            raise ValueError(f"{marked.id[:80]!r} is there twice")
        examples[marked.id] = marked
    return Marks(examples, head)


def _seal_of(head: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([head, *lines], sort_keys=True).encode()).hexdigest()

"""Where the words of a text stand in a corpus: a suffix array per piece of it on disk, and BM25 from the same files.

Axes: T words of a piece, the marks between its documents among them, V different words of it, N documents.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash

from whence.errors import BadInput, StoreCorrupt
from whence.store.files import check_writable, damaged, locked, read_record, read_tensors, write_record, write_tensors

__all__ = ["Span", "WordIndex", "bm25_weights", "longest_shared", "word_index", "words_of"]

_WORD = re.compile(r"\w+")
# Words of a piece, which is sorted in memory (about 50 bytes each) and read as a whole (8 bytes each).
_PIECE = 1 << 22
# Pieces that stay in memory between questions.
_IN_MEMORY = 4
_FORMAT = "whence words 1"
_ROWS = 5


@dataclass(frozen=True)
class Span:
    """Words of a text that stand in the corpus one after the other.

    Args:
        start: First character in the text.
        stop: One past the last.
        words: How many words.
        count: How often they stand in the corpus.
        rows: The first documents that have them, a few.
    """

    start: int
    stop: int
    words: int
    count: int
    rows: tuple[int, ...]


def words_of(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Words of a text in lower case, and the characters of each. Marks and spaces between them are left out.

    >>> words_of("To be, or")
    (['to', 'be', 'or'], [(0, 2), (3, 5), (7, 9)])
    """
    matches = list(_WORD.finditer(text))
    return [match[0].lower() for match in matches], [match.span() for match in matches]


def longest_shared(first: Sequence[str], second: Sequence[str]) -> tuple[int, int, int]:
    """The longest run of words that two texts have in common: its position in either, and how many words it has.

    Of several equally long ones the earliest in the first text, then in the second.

    >>> longest_shared("a b c d".split(), "x b c y".split())
    (1, 1, 2)
    """
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(second):
        positions.setdefault(word, []).append(position)
    best, ending = (0, 0, 0), {}
    for at, word in enumerate(first):
        # How many words in a row end at this word of the one and at that of the other.
        ending = {position: ending.get(position - 1, 0) + 1 for position in positions.get(word, ())}
        for position, length in ending.items():
            if length > best[2]:
                best = (at - length + 1, position - length + 1, length)
    return best


def bm25_weights(counts: np.ndarray, lengths: np.ndarray, mean_length: float, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """What one occurrence in the query of a term is worth to documents, before its rarity (Robertson and Zaragoza 2009).

    tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))

    Args:
        counts: Of the term in each document.
        lengths: Of these documents, in terms.
        mean_length: Of all documents.
        k1: How soon repetitions stop counting.
        b: How much long documents are marked down.
    """
    return counts * (k1 + 1) / (counts + k1 * (1 - b + b * lengths / (mean_length or 1.0)))


@dataclass(frozen=True)
class _Record:
    format: str
    identity: str
    documents: int
    words: int
    pieces: Mapping[str, str]


@dataclass(frozen=True)
class _Piece:
    """Some documents, their words numbered by the order of their hashes from 1 on; 0 stands after each document.

    Args:
        data: The numbers, four bytes each with the highest first, so that bytes are in the order of the words.
        suffixes: Places of all words, in the order of what follows there.
        starts: Place of each document's first word, and one past the end.
        vocabulary: Hashes of the words, ascending.
        first: Row of the first document.
    """

    data: bytes
    suffixes: np.ndarray
    starts: np.ndarray
    vocabulary: np.ndarray
    first: int

    def bytes_of(self, hashes: np.ndarray) -> bytes:
        """A text in the piece's numbers; a word that it does not have gets one that stands nowhere."""
        positions = np.searchsorted(self.vocabulary, hashes)
        is_known = self.vocabulary[np.minimum(positions, len(self.vocabulary) - 1)] == hashes
        return np.where(is_known, positions + 1, len(self.vocabulary) + 1).astype(">i4").tobytes()

    def longest(self, text: bytes) -> list[int]:
        """How many words from each word of a text on stand somewhere in the piece."""
        return [self._longest(text[at:]) for at in range(0, len(text), 4)]

    def _longest(self, text: bytes) -> int:
        position = bisect_left(self.suffixes, text, key=lambda at: self.data[4 * int(at) : 4 * int(at) + len(text)])
        near = self.suffixes[max(0, position - 1) : position + 1].tolist()
        return max(_shared(text, self.data[4 * at : 4 * at + len(text)]) for at in near)

    def positions_of(self, text: bytes) -> np.ndarray:
        """Where all words of a text stand one after the other."""

        def key(at: int) -> bytes:
            return self.data[4 * int(at) : 4 * int(at) + len(text)]

        return self.suffixes[bisect_left(self.suffixes, text, key=key) : bisect_right(self.suffixes, text, key=key)]

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """Number of the document, in this piece, of each position."""
        return np.searchsorted(self.starts, positions, side="right") - 1


@dataclass(frozen=True)
class WordIndex:
    """The words of a corpus on disk; see `word_index`.

    Args:
        folder: Where it is.
        num_documents: Documents, by row.
        num_words: Words of all of them.
        pieces: SHA-256 of each piece, by file.
    """

    folder: Path
    num_documents: int
    num_words: int
    pieces: Mapping[str, str]
    _in_memory: dict[str, _Piece] = field(default_factory=dict, repr=False, compare=False)

    def spans(self, text: str, *, least: int = 4) -> tuple[Span, ...]:
        """The longest runs of a text's words that stand in the corpus, in the order of the text.

        Runs may overlap, but none is inside of another one.

        Args:
            text: The text.
            least: Words of the shortest one.

        Returns:
            The runs.
        """
        words, characters = words_of(text)
        if not words:
            return ()
        hashes = _hashes(words)
        lengths = np.zeros(len(words), np.int64)
        for _, piece in self._pieces():
            lengths = np.maximum(lengths, piece.longest(piece.bytes_of(hashes)))
        ends = np.arange(len(words)) + lengths
        runs = [at for at in range(len(words)) if lengths[at] >= least and (at == 0 or ends[at] > ends[at - 1])]
        counts, rows = [0] * len(runs), [list[int]() for _ in runs]
        for _, piece in self._pieces() if runs else ():
            numbers = piece.bytes_of(hashes)
            for number, at in enumerate(runs):
                positions = piece.positions_of(numbers[4 * at : 4 * int(ends[at])])
                counts[number] += len(positions)
                rows[number] += (np.unique(piece.documents(positions))[:_ROWS] + piece.first).tolist()
        return tuple(
            Span(characters[at][0], characters[ends[at] - 1][1], int(lengths[at]), count, tuple(holders[:_ROWS]))
            for at, count, holders in zip(runs, counts, rows, strict=True)
        )

    def bm25(self, text: str) -> np.ndarray:
        """BM25 of every document for a text, shape (N,), with the constants and terms of `whence.score.bm25`."""
        counted = Counter(words_of(text)[0])
        hashes, scores_N = _hashes(list(counted)), np.zeros(self.num_documents)
        num_with = np.zeros(len(counted))
        for _, piece in self._pieces():
            for number, (holders, _) in enumerate(_postings(piece, hashes)):
                num_with[number] += len(holders)
        idf = np.log1p((self.num_documents - num_with + 0.5) / (num_with + 0.5))
        mean_length = self.num_words / self.num_documents
        for _, piece in self._pieces():
            lengths = np.diff(piece.starts) - 1
            for (holders, counts), rarity, times in zip(_postings(piece, hashes), idf, counted.values(), strict=True):
                weights = bm25_weights(counts, lengths[holders], mean_length)
                scores_N[piece.first + holders] += times * rarity * weights
        return scores_N

    def _pieces(self) -> Iterator[tuple[str, _Piece]]:
        first = 0
        for name in self.pieces:
            piece = self._in_memory.get(name) or self._read(name, first)
            if len(self._in_memory) < _IN_MEMORY:
                self._in_memory[name] = piece
            first = piece.first + len(piece.starts) - 1
            yield name, piece
        if first != self.num_documents:
            raise StoreCorrupt(
                **_not_ours(self.folder / "words.json", f"{first:,} documents where it says {self.num_documents:,}")
            )

    def _read(self, name: str, first: int) -> _Piece:
        """A piece, if its parts fit together.

        Raises:
            StoreCorrupt: If they do not.
        """
        path = self.folder / name
        try:
            parts = {key: tensor.numpy() for key, tensor in read_tensors(path, sha256=self.pieces[name]).items()}
            words, suffixes, starts, vocabulary = (parts[key] for key in ("words", "suffixes", "starts", "vocabulary"))
            is_whole = (
                all(part.ndim == 1 and part.dtype.kind == "i" for part in parts.values())
                and len(words) == len(suffixes) == starts[-1]
                and 0 <= suffixes.min() <= suffixes.max() < len(words)
                and starts[0] == 0 and bool((np.diff(starts) > 0).all())
                and len(vocabulary) > 0
            )  # fmt: skip
        except (StoreCorrupt, KeyError, IndexError, ValueError) as error:
            why = "its bytes are not those that were written" if isinstance(error, StoreCorrupt) else f"it has no {error}"
            raise StoreCorrupt(**_not_ours(path, why)) from error
        if not is_whole:
            raise StoreCorrupt(**_not_ours(path, "its parts do not fit together"))
        return _Piece(words.astype(">i4").tobytes(), suffixes, starts, vocabulary, first)


def word_index(texts: Iterable[str], folder: str | Path, *, identity: str) -> WordIndex:
    """An index of the words of a corpus: opened if the folder holds it, made if not, in pieces of four million words.

    Eight bytes a word on disk, and eight for each different word of a piece. Texts are read one after the other; a suffix array of a piece
    is made by doubling (Manber and Myers 1993).

    Args:
        texts: Of the documents, by row. Documents without words have none of anything.
        folder: Where it is kept. An index of another corpus there is replaced.
        identity: Of the corpus, such as the digest of a store.

    Returns:
        The index.

    Raises:
        BadInput: If there are no documents, or no words in them.
    """
    folder = Path(folder)
    record = folder / "words.json"
    if os.path.lexists(record):
        content = read_record(_Record, record)
        if (content.format, content.identity) == (_FORMAT, identity):
            return WordIndex(folder, content.documents, content.words, content.pieces)
    check_writable(folder)
    with locked(folder):
        record.unlink(missing_ok=True)
        for file in folder.glob("words-*.safetensors"):
            file.unlink()
        pieces: dict[str, str] = {}
        documents = words = 0
        for numbers, starts, vocabulary in _cut(texts):
            name = f"words-{len(pieces):05d}.safetensors"
            parts = {"words": numbers, "suffixes": suffix_array(numbers), "starts": starts, "vocabulary": vocabulary}
            pieces[name] = write_tensors(folder / name, {key: torch.from_numpy(part) for key, part in parts.items()})
            documents += len(starts) - 1
            words += len(numbers) - (len(starts) - 1)
        if not words:
            raise BadInput(
                found=f"{documents:,} documents without a word of text",
                needed="texts, to say what is copied from them",
                do="keep texts in the store or in the records, or leave the index of words out",
            )
        content = {"format": _FORMAT, "identity": identity, "documents": documents, "words": words, "pieces": pieces}
        write_record(record, content)
    return WordIndex(folder, documents, words, pieces)


def suffix_array(words_T: np.ndarray) -> np.ndarray:
    """Places of a sequence in the order of what follows there; the end comes before everything else.

    >>> suffix_array(np.array([2, 1, 2, 1])).tolist()
    [3, 1, 2, 0]
    """
    ranks_T = np.unique(words_T, return_inverse=True)[1].astype(np.int64).ravel()
    width, count = 1, len(words_T)
    while True:
        after_T = np.zeros(count, np.int64)
        after_T[: max(0, count - width)] = ranks_T[width:] + 1
        keys_T = ranks_T * (count + 1) + after_T
        order_T = keys_T.argsort(kind="stable")
        sorted_T = keys_T[order_T]
        ranks_T[order_T] = np.concatenate([[0], np.cumsum(sorted_T[1:] != sorted_T[:-1])])
        if ranks_T[order_T[-1]] == count - 1:
            return order_T.astype(np.int32)
        width *= 2


def _cut(texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces of the corpus: numbers of its words, starts of its documents, hashes of its different words.

    Yields:
        Piece by piece.
    """
    number_of: dict[str, int] = {}
    numbers: list[int] = []
    starts = [0]
    for text in texts:
        numbers += [number_of.setdefault(word, len(number_of) + 1) for word in words_of(text)[0]]
        numbers.append(0)
        starts.append(len(numbers))
        if len(numbers) >= _PIECE:
            yield _numbered(number_of, numbers, starts)
            number_of, numbers, starts = {}, [], [0]
    if len(starts) > 1:
        yield _numbered(number_of, numbers, starts)


def _numbered(number_of: dict[str, int], numbers: list[int], starts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The words numbered anew by the order of their hashes."""
    hashes = _hashes(list(number_of))
    order = hashes.argsort()
    renumbered = np.zeros(len(number_of) + 1, np.int32)
    renumbered[order + 1] = np.arange(1, len(number_of) + 1)
    # A piece of empty documents has no word; a hash that no word of it has keeps its array from being empty.
    vocabulary = hashes[order] if len(hashes) else np.zeros(1, np.int64)
    return renumbered[np.array(numbers)], np.array(starts, np.int64), vocabulary


def _hashes(words: Sequence[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words], np.uint64).view(
        np.int64
    )


def _postings(piece: _Piece, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per word the documents of the piece that have it, and how often.

    Yields:
        Word by word.
    """
    text = piece.bytes_of(hashes)
    for at in range(0, len(text), 4):
        yield np.unique(piece.documents(piece.positions_of(text[at : at + 4])), return_counts=True)


def _shared(first: bytes, second: bytes) -> int:
    """Words that two texts have in common at their beginning."""
    size = min(len(first), len(second))
    differs = np.frombuffer(first[:size], ">i4") != np.frombuffer(second[:size], ">i4")
    return int(differs.argmax()) if differs.any() else size // 4


def _not_ours(path: Path, why: str) -> dict[str, str]:
    return damaged(path, why) | {"do": "delete the folder of the index of words: it is made again"}

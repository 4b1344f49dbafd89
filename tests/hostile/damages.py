"""What can be wrong with a folder, by accident or on purpose."""

import hashlib
import json
import os
import pickle
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ACCIDENTS", "ATTACKS", "ESCAPE"]

ESCAPE = "\x1b[31m\x1b]0;owned\x07\u202e"
_ZERO_DEVICE = os.makedev(1, 5)
_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**62, 10**30, -(10**18), 0.5, 1e308, -1e-300, "", "x", ESCAPE, "evil.py:make", "/etc/passwd",
    "../outside/secret", "../../outside", "a" * 100_000, [], [None], [[]], {}, {"a": 1}, [1] * 50, ["a", "a"], "0" * 64, "\ud800",
]  # fmt: skip
_RAW = [
    "[" * 100_000, '{"a":' * 5_000, "", "nul", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5_000 + "}", '"\\ud800"',
    "[]", "1", "\x00", "{}", "null", "\ufeff{}",
]  # fmt: skip


def _files(folder: Path, *endings: str) -> list[Path]:
    others = {".lock", "evil.py"}
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name not in others)
    return [path for path in found if not endings or path.suffix in endings] or found


def _flip(folder: Path, drawn: random.Random) -> None:
    path = drawn.choice(_files(folder))
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(drawn.choice([1, 1, 1, 2, 30])):
        content[drawn.randrange(len(content))] ^= drawn.randint(1, 255)
    path.write_bytes(content)


def _cut(folder: Path, drawn: random.Random) -> None:
    path = drawn.choice(_files(folder))
    os.truncate(path, drawn.randrange(path.stat().st_size or 1))


def _grow(folder: Path, drawn: random.Random) -> None:
    with drawn.choice(_files(folder)).open("ab") as file:
        file.write(drawn.randbytes(drawn.choice([1, 8, 5000])))


def _zeros(folder: Path, drawn: random.Random) -> None:
    path = drawn.choice(_files(folder))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(drawn.randrange(size or 1))
        file.write(bytes(drawn.randint(1, 600)))
        file.truncate(size)


def _delete(folder: Path, drawn: random.Random) -> None:
    path = drawn.choice([path for path in folder.rglob("*") if path.is_file() or drawn.random() < 0.2] or _files(folder))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _swap(folder: Path, drawn: random.Random) -> None:
    one, other = drawn.choice(_files(folder)), drawn.choice(_files(folder))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _double(folder: Path, drawn: random.Random) -> None:
    one, other = drawn.choice(_files(folder)), drawn.choice(_files(folder))
    other.write_bytes(one.read_bytes())


def _stray(folder: Path, drawn: random.Random) -> None:
    """A file that does not belong there."""
    path = drawn.choice(_files(folder))
    path.with_name(
        drawn.choice([f"{path.name}.tmp", f"copy of {path.name}", f".{path.name}.swp", f"x{path.name}"])
    ).write_bytes(path.read_bytes())


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in list(inside)[:60] for place in _places(part, (*at, key)))]


def _json_value(folder: Path, drawn: random.Random) -> None:
    """Another value, or another key, somewhere in a record."""
    path = drawn.choice(_files(folder, ".json", ".jsonl"))
    lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    number = drawn.randrange(len(lines) or 1)
    try:
        content = json.loads(lines[number])
    except (ValueError, IndexError):
        return _raw(folder, drawn)
    places = _places(content)[1:]
    if not places:
        return _raw(folder, drawn)
    *way, last = drawn.choice(places)
    inside = content
    for key in way:
        inside = inside[key]
    what = drawn.random()
    if what < 0.15:
        del inside[last]
    elif what < 0.25 and isinstance(inside, dict):
        inside[drawn.choice(["x", "__class__", ESCAPE, "files"])] = inside.pop(last)
    else:
        inside[last] = drawn.choice(_VALUES)
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    return None


def _raw(folder: Path, drawn: random.Random) -> None:
    path = drawn.choice(_files(folder, ".json", ".jsonl"))
    text = drawn.choice(_RAW)
    path.write_text(text if path.suffix == ".json" or drawn.random() < 0.5 else f"{text}\n" * 3, encoding="utf-8")


def _link(folder: Path, drawn: random.Random) -> None:
    # A link to the folder that a person names is theirs.
    path = drawn.choice([path for path in folder.rglob("*") if path.parent != folder and path.name != ".lock"])
    outside = folder.parent / "outside"
    kept = outside / f"kept-{path.name}"
    path.rename(kept)
    targets = [kept, kept, outside / "secret", Path("/dev/zero"), Path("/dev/stdin"), path, outside, Path("nowhere")]
    path.symlink_to(drawn.choice(targets))


def _odd(folder: Path, drawn: random.Random) -> None:
    """A pipe, a device, a folder in the place of a file."""
    path = drawn.choice(_files(folder))
    path.unlink()
    what = drawn.choice(["pipe", "folder", "device"])
    try:
        if what == "device":
            os.mknod(path, 0o666 | stat.S_IFCHR, _ZERO_DEVICE)
        elif what == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
    except PermissionError:  # devices are root's to make
        os.mkfifo(path)


def _planted(folder: Path, drawn: random.Random) -> None:
    """Links where files will be written, and where a killed process would have left some."""
    path = drawn.choice(_files(folder))
    for name in (f"{path.name}.tmp", ".files.tmp", ".files.whole", ".lock"):
        place = path.with_name(name)
        if place.exists() and not place.is_dir():
            place.unlink()
        if not os.path.lexists(place) and drawn.random() < 0.6:
            place.symlink_to(folder.parent / "outside" / drawn.choice(["secret", "", "new"]))


class _Evil:
    def __reduce__(self):
        return os.system, ("touch ../outside/ran",)


def _array(folder: Path, drawn: random.Random) -> None:
    """A header that promises what is not there."""
    path = drawn.choice(_files(folder, ".npy", ".safetensors"))
    content = path.read_bytes()
    if path.suffix == ".npy":
        shape = drawn.choice(["(1000000000, 1000000000)", "(-1, 3)", "(2,", "(" * 500, "()", "(0, 0)", "(True,)", "(1.0,)"])
        kind = drawn.choice(["<f8", "|O", "|b1", "<U9", "<c16", "<i8", "[('a', '<f8')]", "<f2"])
        text = (
            f"{{'descr': '{kind}', 'fortran_order': {drawn.choice(['False', 'True', '1'])}, 'shape': {shape}, }}".ljust(117)
            + "\n"
        )
        body = pickle.dumps(_Evil()) if drawn.random() < 0.5 else content[128:]
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + body)
        return None
    if path.suffix != ".safetensors" or len(content) < 8:
        return _flip(folder, drawn)
    length = int.from_bytes(content[:8], "little")
    if drawn.random() < 0.2:
        path.write_bytes(drawn.choice([2**63, 2**64 - 1, 10**9, 0, length - 1]).to_bytes(8, "little") + content[8:])
        return None
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return _flip(folder, drawn)
    entry = header[drawn.choice(list(header))]
    what = drawn.choice(["shape", "dtype", "data_offsets", "name"])
    if what == "name":
        header[drawn.choice(["x", ESCAPE, "../x"])] = header.pop(drawn.choice(list(header)))
    elif what == "dtype":
        entry["dtype"] = drawn.choice(["F64", "I8", "BOOL", "F4", 1, None, "O"])
    else:
        entry[what] = drawn.choice(
            [[10**9, 10**9], [-1], [0], [], [2**62] * 3, ["a"], None, {"a": 1}, [1] * 500, [0, 10**15], [8, 4]]
        )
    text = json.dumps(header).encode()
    text += b" " * max(0, length - len(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return None


def _numbers(folder: Path, drawn: random.Random) -> None:
    """NaN, infinities and absurd numbers in the place of numbers."""
    path = drawn.choice(_files(folder, ".npy", ".safetensors"))
    content = bytearray(path.read_bytes())
    first = len(content) // 2
    pattern = drawn.choice(
        [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x02\x00\x00\x80"]
    )
    for _ in range(drawn.choice([1, 8])):
        at = first + 4 * drawn.randrange(max(1, (len(content) - first) // 4 - 1))
        content[at : at + 4] = pattern
    path.write_bytes(content[: path.stat().st_size])


def _resealed(damage: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """What an author does: the sums in the records are those of the files as they are now."""

    def done(folder: Path, drawn: random.Random) -> None:
        before = {path: _sum(path) for path in _files(folder)}
        damage(folder, drawn)
        for _ in range(3):  # records of records
            changed = {
                old.encode(): _sum(path).encode() for path, old in before.items() if path.is_file() and not path.is_symlink()
            }
            for path in _files(folder):
                if path.suffix not in (".json", ".jsonl", ".sha256") or path.stat().st_size > 1 << 20:
                    continue
                content = path.read_bytes()
                for old, new in changed.items():
                    content = content.replace(old, new)
                path.write_bytes(content.replace(b'"seal":', b'"sael":') if drawn.random() < 0.3 else _without_seal(content))
            before |= {path: new.decode() for path in before for old, new in changed.items() if before[path].encode() == old}

    done.__name__ = f"{damage.__name__}, sealed again"
    return done


def _without_seal(content: bytes) -> bytes:
    try:
        found = json.loads(content)
        if isinstance(found, dict) and found.pop("seal", None) is not None:
            return json.dumps(found, indent=1).encode()
    except (ValueError, RecursionError):
        pass
    return content


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


ACCIDENTS: list[Callable[[Path, random.Random], None]] = [
    _flip,
    _flip,
    _flip,
    _cut,
    _grow,
    _zeros,
    _delete,
    _swap,
    _double,
    _stray,
]
"""After these the answer is the same, or is refused."""
ATTACKS: list[Callable[[Path, random.Random], None]] = [
    _link, _odd, _planted, _json_value, _raw, _array, _numbers,
    *map(_resealed, (_json_value, _json_value, _json_value, _array, _array, _numbers, _raw, _flip)),
]  # fmt: skip
"""After these, too, or the answer is what the author says; nothing else happens."""

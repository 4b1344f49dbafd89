"""What was typed and cannot be read, and what was meant by it."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, MissingArgumentError, RepeatArgumentError

from whence.errors import BadInput, is_question

if TYPE_CHECKING:
    from cyclopts import Argument

__all__ = ["explained", "usage"]

# Options that take what somebody wants to know.
_QUESTIONS = ("--text", "--prompt")
# Options that take what people write bare.
_TAKERS = (*_QUESTIONS, "--ids")


def explained(error: CycloptsError, app: App, verbs: Iterable[str], words: Sequence[str]) -> BadInput:
    """The error of a command that cannot be read, with what was probably meant.

    Args:
        error: As the reader of commands has it.
        app: The command line.
        verbs: Its verbs.
        words: What was typed.
    """
    typed = next((word for word in words if not word.startswith("-")), "")
    if typed not in verbs:
        return _no_verb(typed, tuple(verbs), words) if typed else _other(error, "whence --help")
    arguments = list(app[typed].assemble_argument_collection(parse_docstring=False))
    options = [name for argument in arguments for name in argument.names]
    unknown = [word.partition("=")[0] for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    if unknown:
        return _no_option(unknown[0], typed, options)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        question = next((word for word in words if is_question(word)), None)
        if question is not None and error.argument.name in _QUESTIONS:
            return _one_too_many(question, typed, arguments, options)
        is_named = error.keyword is not None or bool(error.argument.tokens)
        name = error.keyword or error.argument.name
        return BadInput(
            found=f"{name} without a value" if is_named else f"whence {typed} without {_shown(error.argument)}",
            needed=usage(typed, arguments),
            do=f"add it; see `whence {typed} --help`",
        )
    if isinstance(error, RepeatArgumentError):
        name = error.token.keyword or "an option"
        return BadInput(found=f"{name} more than once", needed="it once", do=f"leave one out; see `whence {typed} --help`")
    if error.unused_tokens:
        return _one_too_many(error.unused_tokens[0], typed, arguments, options)
    return _other(error, f"whence {typed} --help")


def usage(verb: str, arguments: Iterable["Argument"]) -> str:
    """A verb with all that it cannot do without, in a line."""
    required = [argument for argument in arguments if argument.required and argument.name != "*"]  # a record of options
    return " ".join([f"whence {verb}", *(_shown(argument) for argument in required)])


def _shown(argument: "Argument") -> str:
    """As people type it: DATA for a word that stands alone, --output OUTPUT for an option."""
    bare = argument.name.lstrip("-")
    return bare.upper() if argument.index is not None else f"{argument.name} {bare.upper()}"


def _no_verb(word: str, verbs: tuple[str, ...], words: Sequence[str]) -> BadInput:
    if is_question(word):
        return BadInput(
            found=f"the question {word!r} where a verb is needed",
            needed="what to do with it, and a store to ask",
            do="pass it as --text: whence query STORE --text '...'",
        )
    if word == "help":
        about = next((f"whence {other} --help" for other in words if other in verbs), "whence --help")
        return BadInput(found="help, which is no verb but an option", needed="--help", do=f"see `{about}`")
    near = get_close_matches(word, verbs, n=1, cutoff=0.6)
    return BadInput(
        found=f"the unknown verb {word!r}",
        needed=f"one of: {', '.join(sorted(verbs))}",
        do=f"did you mean `whence {near[0]}`?" if near else "see `whence --help`",
    )


def _no_option(option: str, verb: str, options: Sequence[str]) -> BadInput:
    near = get_close_matches(option, [name for name in options if name.startswith("--")], n=1, cutoff=0.6)
    every = f"see `whence {verb} --help-all`"
    return BadInput(
        found=f"the unknown option {option}",
        needed=f"an option of whence {verb}",
        do=f"did you mean {near[0]}? Else {every}" if near else every,
    )


def _one_too_many(word: str, verb: str, arguments: Sequence["Argument"], options: Sequence[str]) -> BadInput:
    """What stands alone and is not read, which for most people is the question itself, or an id."""
    way = next((f"pass it as {name}" for name in _TAKERS if name in options), None)
    return BadInput(
        found=f"{word!r}, which whence {verb} does not read",
        needed=usage(verb, arguments),
        do=f"{way}, or leave it out" if way else f"leave it out; see `whence {verb} --help`",
    )


def _other(error: CycloptsError, command: str) -> BadInput:
    text = " ".join(str(error).split()).rstrip(".")
    return BadInput(found=f"a command that cannot be read ({text})", do=f"see `{command}`")

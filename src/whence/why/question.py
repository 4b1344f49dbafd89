"""What is asked: a prompt and its completion, given or written by the model, and each token of the completion as a query of its own.

Axes: M scored tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from whence.capture import frozen
from whence.data import Example
from whence.errors import BadInput
from whence.settings import Contrast, Writing
from whence.tasks import CausalLM
from whence.tasks.causal_lm import contrasted
from whence.tasks.chat import prompt_of
from whence.tasks.lm_records import encoded
from whence.tasks.token_inputs import end_marks
from whence.tasks.token_loss import IGNORED

__all__ = ["Question", "question", "texts_of"]

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """A prompt with its completion.

    Args:
        whole: The query that measures the log-probability of every completion token, less that of every token of its foil.
        prompt: Text before the completion.
        tokens: Text of each completion token, in order.
        positions: Where in the token ids each of them stands.
        log_probabilities: What the model gives each of them, in nats.
        foil: The same prompt with what it is held against; None where it is held against nothing.
    """

    whole: Example
    prompt: str
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    foil: "Question | None" = None

    @property
    def all_tokens(self) -> tuple[str, ...]:
        """Those of the completion, then those of its foil."""
        return self.tokens + (() if self.foil is None else self.foil.tokens)

    @property
    def values(self) -> tuple[float, ...]:
        """What each of them adds to the measurement."""
        against = () if self.foil is None else self.foil.log_probabilities
        return self.log_probabilities + tuple(-value for value in against)

    def one_token(self, index: int) -> Example:
        """The query that measures the log-probability of one token, given everything before it: minus that, if it is the foil's."""
        if self.foil is not None and index >= len(self.tokens):
            foil = self.foil.one_token(index - len(self.tokens))
            nothing = {**foil.fields, "labels": np.full_like(foil.fields["labels"], IGNORED)}
            return replace(contrasted(replace(foil, fields=nothing), foil), id=f"token {index + 1}")
        if self.foil is not None:
            return replace(self, whole=self.alone, foil=None).one_token(index)
        labels = np.full_like(self.whole.fields["labels"], IGNORED)
        labels[self.positions[index]] = self.whole.fields["labels"][self.positions[index]]
        return replace(self.whole, id=f"token {index + 1}", fields={**self.whole.fields, "labels": labels})

    @property
    def alone(self) -> Example:
        """The query without its foil."""
        fields = {name: self.whole.fields[name] for name in ("input_ids", "labels")}
        return replace(self.whole, fields=fields, length=len(fields["labels"]))


def question(
    task: CausalLM,
    prompt: Prompt,
    completion: str | Writing | Contrast,
) -> Question:
    """Tokenize prompt and completion, or let the model write one.

    Args:
        task: The language model.
        prompt: A text, or the messages of a conversation, which get the tokenizer's chat template and its generation prompt.
        completion: What the model said, or would have; or how it writes that; or with what it is held against.

    Returns:
        The question.

    Raises:
        BadInput: If the text does not fit into the context.
    """
    if isinstance(completion, Contrast):
        own, foil = question(task, prompt, completion.completion), question(task, prompt, completion.foil)
        return replace(own, whole=contrasted(own.whole, foil.whole), foil=foil)
    is_text = isinstance(prompt, str)
    before = prompt if isinstance(prompt, str) else prompt_of("the prompt", prompt, task.tokenizer)
    ids, spans = encoded(task.tokenizer, before, special=is_text)
    if isinstance(completion, Writing):
        more, completion, more_spans = _written(task, ids, completion)
    else:
        more, more_spans = encoded(task.tokenizer, completion, special=False)
        more_spans = more_spans or _decoded_spans(task.tokenizer, ids, more)[1]
    if len(ids) + len(more) > task.max_length:
        raise BadInput(
            found=f"a prompt and completion of {len(ids) + len(more):,} tokens",
            needed=f"at most {task.max_length:,}, the model's context",
            do="shorten the prompt",
        )
    labels = [IGNORED] * len(ids) + more
    (whole,) = task.prepare([{"id": "question", "input_ids": ids + more, "labels": labels}]).examples
    after = [(a + len(before), b + len(before)) for a, b in more_spans]
    spans_known = np.asarray([*spans, *after], np.int32) if spans or not ids else None
    whole = replace(whole, text=before + completion, prompt=len(before), token_spans=spans_known)
    # The first token of all is not predicted, so without a prompt the first of the completion has no probability.
    first = max(1, len(ids))
    texts = texts_of(completion, more_spans)[first - len(ids) :]
    return Question(whole, before, texts, tuple(range(first, len(labels))), _log_probabilities(task, whole))


def texts_of(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """The characters of each token; those that several tokens share are the first one's, so that the parts make up the text.

    >>> texts_of("né", [(0, 1), (1, 2), (1, 2)])
    ('n', 'é', '')
    """
    texts, at = [], 0
    for start, stop in spans:
        texts.append(text[max(start, at) : stop])
        at = max(at, stop)
    return tuple(texts)


def _written(task: CausalLM, ids: list[int], writing: Writing) -> tuple[list[int], str, list[tuple[int, int]]]:
    """Token ids, text and spans of what the model says next, without the mark of its end.

    Raises:
        BadInput: If it has nothing to go on from, no room, or nothing to say.
    """
    if not 1 <= len(ids) < task.max_length:
        raise BadInput(
            found=f"a prompt of {len(ids):,} tokens to be completed",
            needed=f"1 to {task.max_length - 1:,}",
            do="lengthen or shorten it",
        )
    generator = torch.Generator().manual_seed(writing.seed)
    model: Any = task.model
    ends, ids_written = end_marks(task.model, task.tokenizer), list(ids)
    with frozen(model), torch.no_grad():
        while len(ids_written) < min(len(ids) + writing.max_new_tokens, task.max_length):
            inputs = torch.tensor([ids_written], device=task.device)
            logits_V = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, -1].double().cpu()
            if writing.temperature:
                token = int(torch.multinomial((logits_V / writing.temperature).softmax(0), 1, generator=generator))
            else:
                token = int(logits_V.argmax())
            if token in ends:
                break
            ids_written.append(token)
    new = ids_written[len(ids) :]
    if not new:
        raise BadInput(
            found="a prompt after which the model ends at once",
            needed="something to explain",
            do="pass a completion, another prompt, or a temperature and another seed",
        )
    return new, *_decoded_spans(task.tokenizer, ids, new)


def _decoded_spans(tokenizer: Any, before: list[int], ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text of tokens after others, and its characters by token: a character of several tokens belongs to the one that completes it."""

    def read(count: int) -> str:
        return tokenizer.decode(before + ids[:count], clean_up_tokenization_spaces=False)

    start, text = len(read(0)), read(len(ids))
    ends = [start]
    for count in range(1, len(ids) + 1):
        so_far = read(count) if count < len(ids) else text
        ends.append(max(ends[-1], len(so_far.rstrip("\N{REPLACEMENT CHARACTER}")) if count < len(ids) else len(text)))
    spans = [(a - start, b - start) for a, b in zip(ends, ends[1:], strict=False)]
    return text[start:], spans


def _log_probabilities(task: CausalLM, whole: Example) -> tuple[float, ...]:
    with frozen(task.model), torch.no_grad():
        outputs = task.outputs(task.model, task.collate([whole]))
        log_p_MV = outputs.values_MC.log_softmax(-1)
        return tuple(log_p_MV.gather(1, outputs.targets[:, None])[:, 0].tolist())

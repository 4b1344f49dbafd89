"""One store at the service: its model, its examples, what is known of it, and how a question becomes a query."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.capture import frozen
from whence.data import Example
from whence.errors import BadInput, Unsupported
from whence.methods import method_named
from whence.pipeline.stored import Warm
from whence.serve.catalog import Catalog, Filter
from whence.spread import refuse_sharded
from whence.store import Store
from whence.tasks import AbstractTask, CausalLM
from whence.tasks.token_loss import IGNORED

__all__ = ["Desk", "Question", "Token"]

# A check of the captured gradients needs two examples with a text.
_CHECKED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a store.

    Args:
        prompt: What comes before; empty to ask about a whole text.
        completion: What is asked about; None to have the model write it first.
        token: Only this token of the completion, counted from 0; None for all of them.
        k: Hits on each side.
        tokens: Whether hits get a score per token.
        filter: Which examples may be hits.
        max_tokens: Tokens to write at most.
    """

    prompt: str
    completion: str | None = None
    token: int | None = None
    k: int = 10
    tokens: bool = False
    filter: Filter = dataclasses.field(default_factory=Filter)
    max_tokens: int = 40


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of the completion.

    Args:
        start: Its first character there.
        stop: One past its last.
        position: Its place in the model's input.
        is_scored: Whether it can be asked about: the very first token of a text cannot.
    """

    start: int
    stop: int
    position: int
    is_scored: bool


@dataclasses.dataclass(frozen=True)
class Desk:
    """A store that can be asked.

    Args:
        name: What it is called in requests.
        warm: The store and its model, made ready.
        catalog: Its examples.
        reader: Turns questions into examples, refusing what is longer than the model's context.
        questions: Prompts to begin with, each perhaps with a completion, for the page.
    """

    name: str
    warm: Warm
    catalog: Catalog
    reader: CausalLM
    questions: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        store: Store,
        task: AbstractTask,
        *,
        metadata: Sequence[Mapping[str, Any]] = (),
        questions: Sequence[Mapping[str, str]] = (),
    ) -> "Desk":
        """Load what questions need, and check the model against the store.

        Args:
            name: What it is called in requests.
            store: The store.
            task: The model that it was built with.
            metadata: See `Catalog.of`.
            questions: Mappings with `prompt` and perhaps `completion`, for the page to begin with.

        Returns:
            The desk.

        Raises:
            Unsupported: If the model is not a language model with a tokenizer, or the store has no texts to check it on.
        """
        if not isinstance(task, CausalLM) or task.tokenizer is None:
            raise Unsupported(
                found=f"a store of a {task.kind} task in {store.folder}",
                needed="a causal language model with a tokenizer, since questions come as text",
                do="ask it with `whence query` or from Python",
            )
        refuse_sharded(task.model, "a service")
        # For its preparing of texts alone; what it tracks is not asked, and may not show while another thread runs the same model.
        reader = CausalLM(task.model, task.tokenizer, long="error", max_length=task.max_length, track=["*"])
        texts = _first_texts(store.examples())
        if not texts:
            raise Unsupported(
                found=f"a store without texts in {store.folder}",
                needed="the texts of its examples, to check the model on and to show",
                do="build it from records with text",
            )
        # Reading a tensor of a safetensors file (0.8) never gives back some 50 bytes: nothing over a build, much over a million questions.
        store = dataclasses.replace(store, held={})
        warm = Warm.of(store, task)
        opener = CausalLM(task.model, task.tokenizer, long="truncate", max_length=task.max_length, track=["*"])
        warm.check(opener.prepare(texts))
        return cls(name, warm, Catalog.of(store, metadata), reader, tuple(questions))

    @property
    def at_once(self) -> int:
        """Queries that may share a scan: one where a query's answer depends on the others asked with it, else as many as one likes."""
        return 1 if method_named(self.warm.store.blueprint.method).whitened else 1 << 30

    def example(self, question: Question) -> tuple[Example, list[Token]]:
        """A question with its completion as the model reads it, and the tokens of the completion.

        Raises:
            BadInput: If there is nothing to ask about, or no such token.
        """
        completion = question.completion or ""
        record = {"prompt": question.prompt, "completion": completion} if question.prompt else {"text": completion}
        try:
            (example,) = self.reader.prepare([{**record, "id": "question"}]).examples
        except BadInput as error:
            # What else helps is said to people who build stores.
            raise BadInput(found=error.found, needed=error.needed, do="change the prompt or the completion") from None
        tokens = _tokens(example, len(question.prompt))
        if question.token is None:
            return example, tokens
        if not 0 <= question.token < len(tokens) or not tokens[question.token].is_scored:
            raise BadInput(
                found=f"token {question.token} of a completion with {len(tokens)}",
                needed="a token after the first one of the text" if question.token == 0 and tokens else "one of its tokens",
                do="count them from 0, as an answer lists them",
            )
        position = tokens[question.token].position
        labels = np.full(example.length, IGNORED, np.int32)
        labels[position] = example.fields["labels"][position]
        return dataclasses.replace(example, fields={**example.fields, "labels": labels}), tokens

    def write(self, question: Question, on_token: Callable[[int], None]) -> str:
        """The model's own completion of a prompt: at each step the likeliest token.

        Args:
            question: With the prompt, and how many tokens at most.
            on_token: Called with the number of tokens so far; what it raises ends the writing.

        Returns:
            The completion, as text.

        Raises:
            BadInput: If there is no prompt, no room after it, or the model ends at once.
            Unsupported: If the model cannot write.
        """
        task, tokenizer = self.reader, self.reader.tokenizer
        if not hasattr(task.model, "generate"):
            raise Unsupported(
                found=f"a model of type {type(task.model).__name__}, which cannot write",
                needed="a Hugging Face model with generate()",
                do="pass the completion",
            )
        ids = list(tokenizer(question.prompt)["input_ids"])
        room = task.max_length - len(ids)
        if not ids or room < 1:
            raise BadInput(
                found=f"a prompt of {len(ids):,} tokens",
                needed=f"1 to {task.max_length - 1:,}, the model's context less the answer",
                do="shorten it" if ids else "write something",
            )
        prompt = torch.tensor([ids], device=task.device)
        model: Any = task.model

        def watch(written: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            on_token(written.shape[1] - len(ids))
            return torch.zeros(1, dtype=torch.bool, device=written.device)

        with frozen(model), torch.no_grad():
            written = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=min(question.max_tokens, room), do_sample=False,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0, stopping_criteria=[watch],
            )[0].tolist()  # fmt: skip
        before, after = (
            tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False) for some in (ids, written)
        )
        # Bytes that are no character would come back as other tokens than were written: the text ends before them.
        completion = after[len(before) :].split("\N{REPLACEMENT CHARACTER}")[0] if after.startswith(before) else ""
        if not completion:
            raise BadInput(found="a model that ends at once after this prompt", needed="an answer", do="try another prompt")
        return completion

    def facts(self) -> dict[str, Any]:
        """What the store is, what was checked when the service started, and what was not."""
        store, blueprint = self.warm.store, self.warm.store.blueprint
        damping = self.warm.damping
        inside = method_named(blueprint.method).curvature == "ekfac"
        return {
            "name": self.name,
            "num_examples": len(store),
            "num_sources": len(self.catalog.sources),
            "has_times": self.catalog.time_N is not None,
            "method": blueprint.method,
            "bytes_per_example": store.codec.row_bytes(),
            "unit": self.warm.task.unit,
            "model": Path(str(blueprint.task.get("model", "given in Python"))).name,
            "weights": blueprint.model,
            "context": self.reader.max_length,
            "digest": blueprint.digest(),
            "coverage": str(self.warm.plan.coverage),
            "damping": "inside the rows" if inside else damping.note if damping else "none",
            "questions": list(self.questions),
            "verified": [
                "every file of the store has the checksum that it was sealed with",
                "the model's weights and tokenizer are those that the store was built with",
                f"captured gradients of {_CHECKED} training examples equal autograd's",
            ],
            "not_verified": [
                "that the scores predict what retraining would do: `whence evaluate` measures that, on a model of your choice",
                "that sources and metadata are what they say: they are shown as they were given",
            ],
        }


def _first_texts(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    found = []
    for example in examples:
        # A single token has nothing to predict.
        if example.get("text") and example["length"] > 1:
            found.append(example["text"])
        if len(found) == _CHECKED:
            break
    return found


def _tokens(example: Example, prompt: int) -> list[Token]:
    if example.token_spans is None or example.span is None:
        return []
    # Spans count from the first character that any token covers, which need not be the text's first.
    shift = example.span[0] - prompt
    labels = np.asarray(example.fields["labels"])
    found = []
    for position, (start, stop) in enumerate(example.token_spans.tolist()):
        if start + shift >= 0 and stop > start:
            found.append(Token(start + shift, stop + shift, position, position > 0 and labels[position] != IGNORED))
    return found

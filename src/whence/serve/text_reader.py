"""Questions to language models: a prompt and its completion, which the model may have to write first."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch

from whence.capture import frozen
from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.serve.question import Question, Token
from whence.store import Store
from whence.tasks import CausalLM
from whence.tasks.token_loss import IGNORED

__all__ = ["TextReader"]

# A check of the captured gradients needs two examples with a text.
_CHECKED = 2


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Turns prompts and completions into examples, refusing what is longer than the model's context.

    Args:
        task: For its preparing of texts alone.
    """

    task: CausalLM
    kind: Literal["completion"] = "completion"

    @classmethod
    def of(cls, task: CausalLM) -> "TextReader":
        """A reader for a store's task: what the task tracks is not asked, and may not show while another thread runs the same model."""
        return cls(CausalLM(task.model, task.tokenizer, long="error", max_length=task.max_length, track=["*"]))

    def first(self, store: Store) -> Dataset:
        """Two training examples, to check the model on.

        Raises:
            Unsupported: If the store has no texts.
        """
        texts = _first_texts(store.examples())
        if not texts:
            raise Unsupported(
                found=f"a store without texts in {store.folder}",
                needed="the texts of its examples, to check the model on and to show",
                do="build it from records with text",
            )
        task = self.task
        return CausalLM(task.model, task.tokenizer, long="truncate", max_length=task.max_length, track=["*"]).prepare(texts)

    def example(self, question: Question) -> tuple[Example, dict[str, Any]]:
        """A question with its completion as the model reads it, and what an answer says of it.

        Raises:
            BadInput: If there is nothing to ask about, or no such token.
        """
        completion = question.completion or ""
        record = {"prompt": question.prompt, "completion": completion} if question.prompt else {"text": completion}
        record |= {"foil": question.foil} if question.foil else {}
        try:
            (example,) = self.task.prepare([{**record, "id": "question"}]).examples
        except BadInput as error:
            # What else helps is said to people who build stores.
            raise BadInput(found=error.found, needed=error.needed, do="change the prompt or the completion") from None
        tokens = _tokens(example, len(question.prompt))
        if question.token is None:
            return example, _facts_of(question, tokens)
        if not 1 <= question.token <= len(tokens) or not tokens[question.token - 1].is_scored:
            raise BadInput(
                found=f"token {question.token} of a completion with {len(tokens)}",
                needed="a token after the first one of the text" if question.token == 1 and tokens else "one of its tokens",
                do="count them from 1, as an answer lists them",
            )
        position = tokens[question.token - 1].position
        labels = np.full(example.length, IGNORED, np.int32)
        labels[position] = example.fields["labels"][position]
        return dataclasses.replace(example, fields={**example.fields, "labels": labels}), _facts_of(question, tokens)

    def write(self, question: Question, on_token: Callable[[int], None]) -> str:
        """The model's own completion of a prompt: at each step the likeliest token, or one drawn.

        Args:
            question: With the prompt, and how many tokens at most.
            on_token: Called with the number of tokens so far; what it raises ends the writing.

        Returns:
            The completion, as text.

        Raises:
            BadInput: If there is no prompt, no room after it, or the model ends at once.
            Unsupported: If the model cannot write.
        """
        task, tokenizer = self.task, self.task.tokenizer
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

        chosen: dict[str, Any] = {"do_sample": False}
        if question.temperature:
            # All tokens may be drawn, each as often as the model says.
            chosen = {"do_sample": True, "temperature": question.temperature, "top_k": 0, "top_p": 1.0}
        # Models draw from the one generator of the process, which is put back as it was.
        with frozen(model), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(question.seed)
            written = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=min(question.max_tokens, room), **chosen,
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


def _facts_of(question: Question, tokens: list[Token]) -> dict[str, Any]:
    return {
        "prompt": question.prompt,
        "completion": question.completion,
        "token": question.token,
        **({"foil": question.foil} if question.foil else {}),
        "tokens": [{"start": token.start, "stop": token.stop, "is_scored": bool(token.is_scored)} for token in tokens],
        **({"temperature": question.temperature, "seed": question.seed} if question.temperature else {}),
    }


def _first_texts(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    texts = []
    for example in examples:
        # A single token has nothing to predict.
        if example.get("text") and example["length"] > 1:
            texts.append(example["text"])
        if len(texts) == _CHECKED:
            break
    return texts


def _tokens(example: Example, prompt: int) -> list[Token]:
    if example.token_spans is None or example.span is None:
        return []
    # Spans count from the first character that any token covers, which need not be the text's first.
    shift = example.span[0] - prompt
    labels = np.asarray(example.fields["labels"])
    tokens = []
    for position, (start, stop) in enumerate(example.token_spans.tolist()):
        if start + shift >= 0 and stop > start:
            tokens.append(Token(start + shift, stop + shift, position, position > 0 and labels[position] != IGNORED))
    return tokens

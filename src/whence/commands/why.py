"""Why did it say this?"""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust, task_of_store, train_records
from whence.commands.shared import Json
from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.terminal import tell_json

__all__ = ["why"]


def why(
    store: Path | None = None,
    *,
    prompt: str,
    completion: str | None = None,
    chat: Annotated[bool, Parameter(negative="")] = False,
    token: int | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 5,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    model: str | None = None,
    train: tuple[str, ...] = (),
    trust: Trust = False,
    split: str = "train",
    long: Literal["error", "split", "truncate"] | None = None,
    method: str | None = None,
    relative_damping: float | None = None,
    factors: Path | None = None,
    fit_on: int | None = None,
    memory_gib: float | None = None,
    shortlist: int | None = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Why did it say this? The training documents, and tokens in them, behind a completion or one token of it.

    Asks a store of the method aligned (a shortlist, then exact scores of it), or with --model and --train all of the training data.

    Args:
        store: Folder made by `whence build`; leave it out to go through the training data itself.
        prompt: What the model was given.
        completion: What it said. Left out, the model writes it: the most likely token each time, or sampled with --temperature.
        chat: The prompt is a user's message: put it into the model's chat template.
        token: Explain only this token of the completion, by its number in the answer, counted from 1.
        k: Documents on each side.
        max_new_tokens: Tokens to write at most; 40 if left out.
        temperature: Sample the completion at this temperature.
        seed: Of sampling, with --temperature; 0 if left out.
        model: Hugging Face folder or hub name, or file.py:function; with a store only if it moved since the build.
        train: Training data, in any form that `whence build` takes; with a store only if it moved. May be repeated.
        trust: With a store: also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store
            names is run.
        split: Without a store: split of a Hugging Face dataset.
        long: Without a store: what to do with texts longer than the context; "error" if left out.
        method: Without a store: ekfac (the default), kfac or grad-dot-exact.
        relative_damping: Without a store: damping as a share of each layer's mean curvature.
        factors: Without a store: folder where the fitted curvature is kept, so that the next question is quick.
        fit_on: Without a store: fit the curvature on so many training examples instead of all.
        memory_gib: Without a store: memory to take besides the model; most of what is free if left out.
        shortlist: With a store: training examples kept on each side; 10 k if left out, and 400 at least.
        html: Also write a page with the answer.
        as_json: Print JSON instead of tables.

    Raises:
        BadInput: If it is not said where to look, or said twice.
    """
    from whence.apply.why import why as ask
    from whence.apply.why.candidates import check_store
    from whence.load import load_records
    from whence.store import open_store

    settings: dict[str, Any] = {
        "token": token,
        "k": k,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    settings |= {"relative_damping": relative_damping, "fit_on": fit_on, "memory_gib": memory_gib, "factors": factors}
    settings |= {"method": method, "shortlist": shortlist}
    asked = [{"role": "user", "content": prompt}] if chat else prompt
    if store is not None:
        if long is not None or split != "train":
            raise BadInput(
                found=f"{'--long' if long is not None else '--split'} with a store",
                needed="what the store was built with, which it knows",
                do="leave it out",
            )
        opened = open_store(store)
        check_store(opened)
        task = task_of_store(opened, store, model, trust=trust)
        found = ask(task, asked, completion, train=train_records(opened, store, train, trust=trust), store=opened, **settings)
        where = str(store)
    else:
        if trust:
            raise BadInput(found="--trust without a store", needed="a store that records something", do="leave it out")
        if model is None or not train:
            raise BadInput(
                found="no store" + ("" if model is None else " and no --train"),
                needed="where to look",
                do="name the folder of a store, or pass --model and --train",
            )
        records = [record for data in train for record in load_records(data, split=split)]
        task, _ = TaskOptions(long=long or "error").load(model)
        found = ask(task, asked, completion, train=records, **settings)
        where = ", ".join(train)
    if html is not None:
        found.page(html, intro=f"{found.hits.num_examples:,} training examples in {where}")
    if as_json:
        tell_json(found.to_dict())
    else:
        found.show()

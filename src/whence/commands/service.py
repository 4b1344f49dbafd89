"""The verb that answers over HTTP."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.shared import Json, read_token, task_of_store, workers_of
from whence.errors import BadInput
from whence.serve import ServeConfig

__all__ = ["serve"]

Options = Annotated[ServeConfig, Parameter(name="*")]


def serve(
    stores: tuple[str, ...],
    /,
    *,
    model: str | None = None,
    questions: str | None = None,
    metadata: str | None = None,
    token_file: Path | None = None,
    open_page: Annotated[bool, Parameter(name="--open", negative="")] = False,
    as_json: Json = False,
    config: Options = ServeConfig(),  # noqa: B008
) -> None:
    """Answer questions over HTTP, with a page for people. Models and stores are loaded once.

    Listens on this machine only, unless told otherwise with --host, which needs a token. Nothing but the query log is written. Needs
    `pip install 'whence[serve]'`.

    Args:
        stores: Folders made by `whence build` from language models, each perhaps as NAME=FOLDER; the name of the folder if left out.
        model: Load the models from here instead of from where they were at the build.
        questions: Prompts to begin with, for the page: a file in any form that `whence build` takes as data.
        metadata: What else is known of training examples: such a file with id, perhaps time (ISO 8601), and anything to be shown.
        token_file: File with the token that requests have to show.
        open_page: Open the page in a browser.
        as_json: Print the address and the stores as JSON.
        config: The options of the service.

    Raises:
        BadInput: If the extra is not installed.
    """
    try:
        from whence.serve.app import create_app
        from whence.serve.run import named_folders, run_app
    except ImportError as error:
        raise BadInput(
            found=f"no package {error.name}", needed="what the service needs", do="pip install 'whence[serve]'"
        ) from error
    from whence.progress import say
    from whence.serve.config import check_token
    from whence.serve.desk import Desk
    from whence.store import open_store

    token = None if token_file is None else read_token(token_file)
    check_token(config.host, token)  # first: a wrong address should not wait for a large model
    folders = named_folders(stores)
    prompts, known = _prompts(questions), _records(metadata)

    def ready(url: str) -> None:
        print(json.dumps({"url": url, "stores": list(folders)}) if as_json else url, flush=True)
        say(f"{', '.join(folders)}: ask at {url} (Ctrl-C stops; answers are kept in {config.log})")
        if open_page:
            import webbrowser

            webbrowser.open(url)

    tasks: dict[str, Any] = {}
    desks = []
    with workers_of(config.workers, config.ray) as pool:  # they start while models are loaded
        for name, folder in folders.items():
            say(f"loading {folder}")
            opened = open_store(folder)
            # Several stores of one model share it.
            origin = json.dumps(opened.blueprint.task, sort_keys=True) + opened.blueprint.model
            if origin not in tasks:
                tasks[origin] = task_of_store(opened, folder, model)
            desk = Desk.of(name, opened, tasks[origin], metadata=known, questions=prompts)
            desks.append(dataclasses.replace(desk, warm=dataclasses.replace(desk.warm, workers=pool)))
        run_app(create_app(desks, config, token=token), config, ready)


def _prompts(questions: str | None) -> list[dict[str, str]]:
    found = []
    for number, record in enumerate(_records(questions)):
        known = {"prompt": record} if isinstance(record, str) else record
        prompt, completion = known.get("prompt", known.get("text")), known.get("completion", "")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise BadInput(
                found=f"question {number} without a text", needed="'prompt', or 'prompt' and 'completion'", do="add it"
            )
        found.append({"prompt": prompt, "completion": completion})
    return found


def _records(path: str | None) -> list[Any]:
    from whence.load import load_records

    return [] if path is None else list(load_records(path))

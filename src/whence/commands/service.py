"""The verb that answers over HTTP."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.recorded import task_of_store, train_records
from whence.commands.shared import Json, read_token, workers_of
from whence.commands.work_options import DeviceOptions, OnDevice, Recorded, RecordedOptions, refuse_given
from whence.errors import BadInput
from whence.serve import ServeConfig
from whence.terminal import tell, tell_json

__all__ = ["serve"]

Options = Annotated[ServeConfig, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images that are in no files.

    Args:
        train: For stores of images that are in no files: where their data is now; if left out, where it was at the build.
        pixels: For these: the numbers that stand for black and for white; if left out -1 and 1 for diffusion models, else 0 and 1.
    """

    train: tuple[str, ...] = ()
    pixels: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What the page shows besides answers.

    Args:
        questions: Prompts to begin with, for the page: a file in any form that `whence build` takes as data.
        metadata: What else is known of training examples: such a file with id, perhaps time (ISO 8601), and anything to be shown.
        verbatim: Also show what of an answer is copied from the corpus word for word and what is alike by words: the folder in which
            indexes of the stores' words are kept; they are made where they are not there.
        open_page: Open the page in a browser.
    """

    questions: str | None = None
    metadata: str | None = None
    verbatim: Path | None = None
    open_page: Annotated[bool, Parameter(name="--open", negative="")] = False


@dataclass(frozen=True, kw_only=True)
class TokenFiles:
    """Files with tokens, since everyone on the machine can read a command line.

    Args:
        token_file: File with the token that requests have to show.
        clients: File with clients instead, a JSON object: by name `token`, perhaps `per_day`, how many questions it may ask in a day, and
            `salt`, from which its handles are made with --hide-ids.
        write_token_file: File with another token, for requests that add documents to a store or delete them; they are refused if left out.
    """

    token_file: Path | None = None
    clients: Path | None = None
    write_token_file: Path | None = None


def serve(
    stores: tuple[str, ...],
    /,
    *,
    recorded: Recorded = RecordedOptions(),
    machine: OnDevice = DeviceOptions(),
    page: Annotated[PageOptions, Parameter(name="*")] = PageOptions(),
    images: Annotated[ImageOptions, Parameter(name="*")] = ImageOptions(),
    tokens: Annotated[TokenFiles, Parameter(name="*")] = TokenFiles(),
    as_json: Json = False,
    config: Options = ServeConfig(),
) -> None:
    """Answer questions over HTTP, with a page for people. Models and stores are loaded once.

    Listens on this machine only, unless told otherwise with --host, which needs a token. Nothing but the query log is written,
    and with --write-token-file the stores. Needs
    `pip install 'whence-tda[serve]'`.

    Args:
        stores: Folders made by `whence build` from language models, classifiers of texts or images, or diffusion models, each perhaps as
            NAME=FOLDER; the name of the folder if left out.
        recorded: What is loaded of what the stores record.
        machine: Where the models run.
        page: What the page shows besides answers.
        images: Images that are in no files.
        tokens: Who may ask, and who may change documents.
        as_json: Print the address and the stores as JSON.
        config: The options of the service.

    Raises:
        BadInput: If the extra is not installed, or `train` or `pixels` have no use.
    """
    try:
        from whence.serve.app import create_app
        from whence.serve.run import named_folders, run_app
    except ImportError as error:
        raise BadInput(
            found=f"no package {error.name}", needed="what the service needs", do="pip install 'whence-tda[serve]'"
        ) from error
    from whence.progress import say
    from whence.serve.accounts import check_access, read_accounts

    token, write_token = (path and read_token(path) for path in (tokens.token_file, tokens.write_token_file))
    accounts = () if tokens.clients is None else read_accounts(tokens.clients)
    check_access(config, token, write_token, accounts)  # first: a wrong address should not wait for a large model
    if page.verbatim is not None and config.redacted:
        raise BadInput(
            found="--verbatim with --redacted",
            needed="a service that may tell what its training texts say",
            do="leave one of them out",
        )
    folders = named_folders(stores)

    def ready(url: str) -> None:
        tell_json({"url": url, "stores": list(folders)}) if as_json else tell(url, flush=True)
        say(f"{', '.join(folders)}: ask at {url} (Ctrl-C stops; answers are kept in {config.log})")
        if page.open_page:
            import webbrowser

            webbrowser.open(url)

    with workers_of(config.workers, config.ray) as pool:  # they start while models are loaded
        hosted_stores = _hosted_stores(folders, recorded, machine, page, images, pool)
        run_app(create_app(hosted_stores, config, token=token, write_token=write_token, accounts=accounts), config, ready)


def _hosted_stores(
    folders: Mapping[str, Path],
    recorded: RecordedOptions,
    machine: DeviceOptions,
    page: PageOptions,
    images: ImageOptions,
    pool: Any,
) -> list[Any]:
    """The stores with their models, ready to be asked.

    Raises:
        BadInput: If something is said of images that no store has.
    """
    from whence.progress import say
    from whence.serve.hosted_store import HostedStore
    from whence.serve.item_reader import ItemReader
    from whence.store import open_store

    prompts, metadata = _prompts(page.questions), _records(page.metadata)
    tasks: dict[str, Any] = {}
    hosted_stores, num_arrays = [], 0
    for name, folder in folders.items():
        say(f"loading {folder}")
        opened = open_store(folder)
        # Several stores of one model share it.
        origin = json.dumps(opened.blueprint.task, sort_keys=True) + opened.blueprint.model
        if origin not in tasks:
            tasks[origin] = task_of_store(opened, folder, recorded.model, machine.placement, trust=recorded.trust)
        task = tasks[origin]
        arrays: dict[str, Any] = {}
        if ItemReader.needs_train(task, opened):
            records = train_records(opened, folder, images.train, trust=recorded.trust)
            arrays = {"train": task.prepare(records), "pixels": images.pixels}
            num_arrays += 1
        hosted = HostedStore.load(name, opened, task, metadata=metadata, questions=prompts, **arrays)
        words = None if page.verbatim is None or hosted.kind != "completion" else page.verbatim / name
        hosted = replace(hosted, prepared=replace(hosted.prepared, workers=pool), words_folder=words)
        if hosted.words is not None:  # made before the first question
            say(f"the words of {folder} are in {words}")
        hosted_stores.append(hosted)
    if not num_arrays:
        refuse_given(
            images,
            where="for stores of texts or of images in files", needed="a store of images that are arrays of numbers",
        )  # fmt: skip
    return hosted_stores


def _prompts(questions: str | None) -> list[dict[str, str]]:
    prompts = []
    for number, record in enumerate(_records(questions)):
        fields = {"prompt": record} if isinstance(record, str) else record
        prompt, completion = fields.get("prompt", fields.get("text", "")), fields.get("completion", "")
        example, label = fields.get("example", ""), fields.get("label", "")
        if not all(isinstance(value, str) for value in (prompt, completion, example)) or not (prompt or example):
            raise BadInput(
                found=f"question {number} without a text",
                needed="'prompt', or 'prompt' and 'completion'; for other models 'text' or 'example', and 'label'",
                do="add it",
            )
        prompts.append({"prompt": prompt, "completion": completion, "example": example, "label": str(label)})
    return prompts


def _records(path: str | None) -> list[Any]:
    from whence.load import load_records

    return [] if path is None else list(load_records(path))

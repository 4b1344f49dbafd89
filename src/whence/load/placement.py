"""Where the weights of a Hugging Face model go when it is loaded: one device, several, a disk, or a part to each process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from whence.distributed import Ranks
from whence.errors import BadInput, Unsupported, first_line
from whence.internals import UNSPLIT
from whence.plain_files import read_plain
from whence.settings import Placement
from whence.strict_json import parse_json

__all__ = ["check_device", "connected_for", "in_turn", "load_options", "placed"]

Loaded = TypeVar("Loaded")


def load_options(placement: Placement) -> dict[str, Any]:
    """What `from_pretrained` of transformers is told.

    Raises:
        BadInput: If the device map is a file that cannot be read.
    """
    import transformers

    options: dict[str, Any] = {}
    if placement.model_dtype != "auto":
        name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        options[name] = getattr(torch, placement.model_dtype)
    if placement.device_map is not None:
        options["device_map"] = _device_map(placement.device_map)
    if placement.offload_folder is not None:
        options["offload_folder"] = str(placement.offload_folder)
    return options


@contextmanager
def connected_for(placement: Placement, ranks: Ranks) -> Iterator[None]:
    """Let the processes talk while they share a model, over NCCL where they have GPUs; nothing for any other placement.

    Yields:
        Nothing.

    Raises:
        BadInput: If there is one process only.
    """
    if not placement.shard_model:
        yield
        return
    if ranks.count == 1:
        raise BadInput(
            found="shard_model with one process",
            needed="several, each of which takes a part",
            do="start it with torchrun --nproc-per-node N, or pass device_map='auto' (--device-map auto)",
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank(ranks))
    with ranks.connected("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"):
        yield


def in_turn(load: Callable[[], Loaded], placement: Placement, ranks: Ranks) -> Loaded:
    """Load whole and split at once, one process of a machine after the other, so that its memory holds one whole model at a time.

    Args:
        load: Gives what has been split.
        placement: Nobody waits for a model that is not split.
        ranks: The processes.

    Returns:
        What `load` gives.
    """
    if not placement.shard_model:
        return load()
    loaded: list[Loaded] = []
    for turn in range(ranks.local_count):
        if turn == _local_rank(ranks):
            loaded.append(load())
        ranks.wait()
    return loaded[0]


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have, before anything is loaded.

    Args:
        device: Its name; None for none.

    Raises:
        BadInput: If a tensor cannot lie there.
    """
    if device is None:
        return
    try:
        torch.empty(1, device=device).cpu()  # which one on the device "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        names += ["mps"] if torch.backends.mps.is_available() else []
        raise BadInput(
            found=f"the device {device!r}, which cannot be used here ({first_line(error)})",
            needed=f"one that this machine has: {', '.join(names)}",
            do="correct it, or leave it out to run on the processor",
        ) from error


def placed(model: Any, placement: Placement, ranks: Ranks) -> Any:
    """The loaded model, moved, split and checkpointed as asked.

    Args:
        model: A Hugging Face model, perhaps with adapters.
        placement: What is asked.
        ranks: The processes that it is split over, all of which call this.

    Returns:
        The same object.

    Raises:
        Unsupported: If the model has no gradient checkpointing, or no blocks to split it by.
    """
    if placement.device is not None:
        model = model.to(placement.device)
    if placement.gradient_checkpointing:
        try:
            switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            switch({"use_reentrant": False})
        except (ValueError, AttributeError) as error:
            raise Unsupported(
                found=f"a {type(model).__name__}, which has no gradient checkpointing ({error})",
                needed="a model of transformers that has it",
                do="leave gradient_checkpointing out",
            ) from error
    if placement.shard_model:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def _device_map(given: str) -> Any:
    if not given.endswith(".json"):
        return given
    try:
        content = parse_json(read_plain(Path(given), is_named=True))
    except (OSError, ValueError) as error:
        raise BadInput(
            found=f"the device map {given}, which cannot be read ({error})",
            needed='JSON such as {"model.embed_tokens": 0, "model.layers.0": "cpu"}',
            do="mend the file",
        ) from error
    return content


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that repeat: those that the model says must stay together, or else the members of its outermost lists.

    Raises:
        Unsupported: If there are none.
    """
    names = {name for module in model.modules() for name in getattr(module, UNSPLIT, None) or ()}
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        inner = {id(part) for module_list in lists for part in module_list.modules() if part is not module_list}
        blocks = [block for module_list in lists if id(module_list) not in inner for block in module_list]
    if not blocks:
        raise Unsupported(
            found=f"a {type(model).__name__} without blocks that repeat",
            needed="some, which are split one by one",
            do="call torch.distributed.fsdp.fully_shard on its parts yourself, in a function that returns a task",
        )
    return blocks


def _local_rank(ranks: Ranks) -> int:
    return int(os.environ.get("LOCAL_RANK", ranks.rank % ranks.local_count))

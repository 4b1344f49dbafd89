"""Imported once before processes fork: what they would each load for seconds."""

import torch.distributed.device_mesh  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.distributed.tensor  # noqa: F401
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import whence.pipeline  # noqa: F401
import whence.runs  # noqa: F401

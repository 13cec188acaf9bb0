"""Networks divided among processes by torch's FSDP2: each keeps a share, and gathers one block at a time to run it.

Imported by runs that divide something, for torch's own part of it takes a second to load.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeAlias, TypeVar, final

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import ProcessGroup, new_subgroups_by_enumeration
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.blocks import blocks
from freeflow_core.engine.process import gloo_group, patience, processes_per_copy
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Student, Teacher

N = TypeVar("N", bound=nn.Module)
Files: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""Tensors by the name of a part of a checkpoint, such as ``student.ema``, and their own."""


@final
class Sharding:
    """How networks are divided among the processes of ``mesh``, whose last dimension shares one copy.

    A divided network is run by all processes in step: it has to be called equally often by each.
    """

    def __init__(self, mesh: DeviceMesh, writers: ProcessGroup) -> None:
        self._mesh = mesh
        self._group = mesh.get_group(mesh.ndim - 1)
        self._writers = writers  # of its own: they write while training goes on

    @classmethod
    def of(cls, runtime: RuntimeConfig, accelerator: Accelerator) -> Self:
        """As ``runtime`` asks for. Raises :class:`ConfigError` for processes that do not divide."""
        sharing, number = processes_per_copy(runtime, accelerator.num_processes), accelerator.num_processes
        device, everybody = accelerator.device.type, torch.distributed.group.WORLD
        assert everybody is not None
        writers = gloo_group(runtime)
        if sharing == number:
            return cls(DeviceMesh.from_group(everybody, device, mesh_dim_names=("shards",)), writers)
        ranks = torch.arange(number).view(-1, sharing)
        groups = [  # ours, for those that a mesh makes itself wait for as long as torch likes
            new_subgroups_by_enumeration(each.tolist(), timeout=patience(runtime))[0]  # type: ignore[no-untyped-call]
            for each in (ranks.T, ranks)
        ]
        mesh = DeviceMesh.from_group(groups, device, ranks, mesh_dim_names=("replicas", "shards"))
        return cls(mesh, writers)

    def divide(self, network: nn.Module) -> None:
        """Divide a network that is run by calling it: its blocks one by one, then the rest as one."""
        # Objectives know that an output is not to be changed in place; a warning would tell those who cannot change it.
        warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
        for block in blocks(network):
            self._divide(block)
        self._divide(network)

    def divide_blocks(self, teacher: Teacher) -> list[nn.Module]:
        """Divide the blocks of a network that is asked by its methods; what stands outside of them stays whole."""
        found = blocks(teacher)
        for block in found:
            self._divide(block)
        return found

    def parts(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """This process's parts; they share memory with ``tensors``."""
        with torch.no_grad():
            return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def joined(self, part: Tensor, like: Tensor) -> Tensor:
        """The tensor whose part on this process is ``part``, divided as ``like`` is."""
        if not isinstance(like, DTensor):
            return part
        mesh, placements = like.device_mesh, like.placements
        if part.storage_offset():  # torch's deepcopy takes such a tensor for one with memory of its own
            part = part.clone()
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())

    def norm(self, norm: Tensor) -> Tensor:
        """Norm of all parts, from that of this process's, 0-d on the device."""
        square = norm.square()
        torch.distributed.all_reduce(square, group=self._group)
        return square.sqrt()

    def close(self) -> None:
        """End gloo's threads while the interpreter stands."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._writers)

    def write(self, folder: Path, files: Files) -> list[Path]:
        """Each process its parts, all together, in safetensors files; those of this process.

        Raises :class:`CheckpointError` on every process when one cannot.
        """
        tensors = {f"{file}/{name}": tensor for file, named in files.items() for name, tensor in named.items()}
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=self._writers)
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            raise CheckpointError(f"process {rank} failed: {reason}") from None
        return sorted(folder.glob(f"shard-{torch.distributed.get_rank(self._writers) + 1:05d}-*.safetensors"))

    def from_writers(self, value: dict[str, str]) -> dict[str, str]:
        """The values of all processes that write, together."""
        found: list[dict[str, str]] = [{} for _ in range(torch.distributed.get_world_size(self._writers))]
        torch.distributed.all_gather_object(found, value, group=self._writers)
        return {name: text for each in found for name, text in each.items()}

    def host_copy(self, tensor: Tensor) -> Tensor:
        """A copy in the host's memory, which a thread can write: it has another device than its process."""
        copied: Tensor = BlockingAsyncStager().stage({"": tensor})[""]
        return copied

    def share(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        """A whole tensor, divided as ``like`` is."""
        if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
            return tensor
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

    def _divide(self, module: nn.Module) -> None:
        try:
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
        except (ValueError, NotImplementedError, AssertionError) as error:
            raise ConfigError(
                f"runtime.sharding cannot divide a {type(module).__name__}: {' '.join(str(error).split())} Use "
                "runtime.sharding=none."
            ) from error


def read(folder: Path, names: Iterable[str], layout: Files) -> dict[str, dict[str, Tensor]]:
    """What processes wrote to ``folder``, however many: divided as in ``layout``, and whole where that is.

    Each process reads by itself. ``names`` of the parts. Raises :class:`CheckpointError` for files that do not do.
    """
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        for key, entry in reader.read_metadata().state_dict_metadata.items():
            file, _, name = key.partition("/")
            if file not in found or not isinstance(entry, TensorStorageMetadata):
                continue
            like, dtype = layout.get(file, {}).get(name), entry.properties.dtype
            if isinstance(like, DTensor) and like.shape == entry.size:
                found[file][name] = torch.zeros_like(like, dtype=dtype)
            else:
                found[file][name] = torch.empty(entry.size, dtype=dtype)
        tensors = {f"{file}/{name}": tensor for file, named in found.items() for name, tensor in named.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*to load in a single process", category=UserWarning)
            load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read: {error}.") from error
    return found


@final
class WholeCopies:
    """The student and the teacher as they are outside of training: undivided, and without weights until filled.

    Each process may ask them what and as often as it likes.
    """

    def __init__(self, student: Student, teacher: Teacher | None) -> None:
        self.student = _without_weights(student)
        self.teacher = None if teacher is None or not blocks(teacher) else _without_weights(teacher)

    @contextmanager
    def filled(self, student: nn.Module, teacher: Teacher | None) -> Iterator[None]:
        """With the weights of two divided networks, gathered by all processes together."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.student, student)]
        if self.teacher is not None and teacher is not None:
            pairs.append((self.teacher, teacher))
        try:
            for copied, divided in pairs:
                _assign(copied, {name: _gathered(p) for name, p in divided.named_parameters()})
                with torch.no_grad():
                    for to, buffer in zip(copied.buffers(), divided.buffers(), strict=True):
                        to.copy_(buffer)
            yield
        finally:
            for copied, _ in pairs:
                _assign(copied, {name: p.to("meta") for name, p in copied.named_parameters()})


def _without_weights(network: N) -> N:
    return copy.deepcopy(network, {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()})


def _assign(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    nn.Module.load_state_dict(network, weights, strict=False, assign=True)


def _gathered(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

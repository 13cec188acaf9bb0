"""A program saved by torch as a teacher."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Self, final

import torch
from torch import nn

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.conversions import Convention
from freeflow_networks.calling import DTYPES, ForeignNetwork
from freeflow_networks.config import TorchFileTeacherConfig
from freeflow_networks.conventions import convention_from
from freeflow_networks.converted import ConvertedTeacher, call_form, conditions_from


@final
class TorchFileTeacher(ConvertedTeacher):
    """A network exported by ``torch.export.save`` (``.pt2``, with a dynamic batch dimension) or ``torch.jit.save``.

    Args:
        network, convention, sample_shape: see :class:`ConvertedTeacher`.
        path: of the file.
    """

    def __init__(
        self, network: ForeignNetwork, convention: Convention, sample_shape: tuple[int, ...], path: Path
    ) -> None:
        super().__init__(network, convention, sample_shape)
        self._path = path
        self.provenance = f"the program in {path}"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when the session is not trusted or the program cannot be asked, ``CheckpointError``
        for a file that holds none."""
        assert isinstance(config, TorchFileTeacherConfig)
        context.require_trust("The teacher 'torch-file'", f"run the program in {config.file}")
        program = _load(config.file)
        network = ForeignNetwork(
            program,
            call_form(config),
            conditions_from(config),
            str(config.file),
            None if config.dtype is None else DTYPES[config.dtype],
            is_program=True,
        )
        teacher = cls(network, convention_from(config), config.sample_shape, config.file).to(context.device)
        if context.device.type != "meta":
            teacher.try_out(context.device)
        return teacher

    def described(self) -> str:
        return f"The program in {self._path} (an exported one needs a dynamic first dimension)"


def _load(path: Path) -> nn.Module:
    if not path.is_file():
        raise CheckpointError(
            f"There is no file {path}. Expected a program saved by torch.export.save or torch.jit.save."
        )
    exported = path.suffix == ".pt2"
    try:
        if exported:
            loaded: nn.Module = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():  # that TorchScript is going away is nothing the user can act on here
                warnings.simplefilter("ignore", DeprecationWarning)
                loaded = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read as {'an exported program' if exported else 'TorchScript'}: "
            f"{' '.join(str(error).split())[:300]}. Expected a file of torch.export.save (.pt2) or torch.jit.save (any "
            "other suffix), written by a torch no newer than this one. A state dict is no program: load it with the "
            "teacher callable and its option weights."
        ) from error
    return loaded

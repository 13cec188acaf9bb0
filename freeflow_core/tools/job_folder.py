"""The folder of a job that can be gone on with, and the file in it that says what the job is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from pydantic import TypeAdapter

from freeflow_core import __version__
from freeflow_core.errors import ConfigError
from freeflow_core.files import write_text

_Manifest = TypeVar("_Manifest")


@final
@dataclass(frozen=True)
class JobFolder(Generic[_Manifest]):
    """A folder, its file ``manifest``, the dataclass that is read from it, and what the folder holds, in words."""

    path: Path
    manifest: str
    form: type[_Manifest]
    contents: str

    @cached_property
    def _reader(self) -> TypeAdapter[_Manifest]:
        return TypeAdapter(self.form)

    def read(self) -> _Manifest | None:
        """None where the job has not begun. Raises ``ConfigError``: it is a file, or the manifest is something else."""
        if self.path.is_file():
            raise ConfigError(f"The output {self.path} is a file; expected a folder. Choose another --output.")
        file = self.path / self.manifest
        try:
            return self._reader.validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file} cannot be read ({type(error).__name__}: {error}), so {self.contents} cannot be continued. "
                "Choose another --output."
            ) from error

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the manifest, whole or not at all. Raises ``OSError`` when the disk is full."""
        write_text(self.path / self.manifest, json.dumps({"freeflow_version": __version__, **values}, indent=1))

    def check_empty(self) -> None:
        """Raise ``ConfigError`` when files of somebody else are there; hidden ones do not count."""
        if any(self.path.glob("[!.]*")):
            raise ConfigError(f"The output folder {self.path} already holds other files. Choose another --output.")

    def check_same(self, changed: Sequence[str]) -> None:
        """Raise ``ConfigError`` that names what is ``changed`` since the job began, if anything is."""
        if changed:
            raise ConfigError(
                f"{self.path} holds {self.contents} of another job. Changed: {'; '.join(changed)}. Undo that to go on "
                "with it, or choose another --output."
            )

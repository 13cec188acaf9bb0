"""One student, one format: chosen by name or suffix, checked against the student's own samples, then given its name."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from freeflow_core import __version__
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.student_file import StudentFile
from freeflow_core.interfaces import Codec, StartTimes, Student
from freeflow_core.network_file import save_tensors
from freeflow_core.plugin import Registry
from freeflow_core.torchvision_ops import diffusers_class
from freeflow_core.types import PortableNetwork

SUFFIXES = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".pt2": "pt2", ".onnx": "onnx", "": "diffusers"}
"""What each suffix says the format is; "": a folder."""

_PORTABLE = Path(__file__).parent / "portable"
_TOLERANCE = 1e-4
"""Largest difference to the student's own samples, in units of their largest value but at least 1."""
_MOST_INSIDE = 2**31 - 2**24
"""Bytes of weights that fit into an ONNX file itself, a protocol buffer."""


def export_student(file: StudentFile, registry: Registry, path: Path, format_name: str | None = None) -> str:
    """Write ``file``'s student to ``path``; what was written, in words.

    Args:
        path: a file to write, or for ``diffusers`` a folder; nothing may be there.
        format_name: of :data:`SUFFIXES`; None: what the suffix of ``path`` says.

    Raises:
        ConfigError: a format that does not exist, is not installed or cannot carry the student; something is there.
        CheckpointError: it cannot be written, or what was written gives other samples; nothing is left behind.
    """
    chosen, formats = format_name or SUFFIXES.get(path.suffix), dict.fromkeys(SUFFIXES.values())
    if chosen not in formats:
        raise ConfigError(
            f"Cannot export to {path}: expected a name that ends in {', '.join(filter(None, SUFFIXES))}, a "
            f"folder's name for diffusers, or one of the formats {', '.join(formats)}; got {chosen or path.suffix!r}."
        )
    expected = [suffix for suffix, name in SUFFIXES.items() if name == chosen]
    if path.suffix not in expected and chosen != "diffusers":
        raise ConfigError(
            f"The format {chosen} is written to a file whose name ends in {' or '.join(expected)}, got {path}."
        )
    for taken in [path, _script_of(path)] if chosen == "onnx" else [path]:
        if taken.exists():
            raise ConfigError(f"{taken} exists already and is left as it is. Choose another place.")
    if chosen in ("safetensors", "pt"):
        return file.student.export(path)
    write = {"pt2": _write_program, "onnx": _write_onnx, "diffusers": write_pipeline}[chosen]
    with _staging(path) as folder:
        what = write(file, registry, folder / path.name)
    return f"{path}: {what}"


def about(file: StudentFile) -> dict[str, Any]:
    """What a program that samples from a graph has to know, as JSON."""
    student = file.student
    return {
        "sample_shape": list(student.sample_shape),
        "num_classes": student.num_classes or 0,
        "guidance": file.guidance,
        "teacher": file.teacher.name if file.teacher else None,
        "codec": file.codec.name,
        "component": file.metadata.get("component"),
        "freeflow_version": __version__,
    }


@final
class OneStep(nn.Module):
    """Noise to images in [-1, 1] (N, C, H, W); to states (N, *D) where they are no images.

    Inputs: ``noise`` (N, *D) float32; ``guidance`` (N,) float32 weights, 1 for none; and of a student with classes
    ``labels`` (N,) int64.
    """

    def __init__(self, student: Student, codec: Codec) -> None:
        super().__init__()
        self.student = student
        self.codec = codec if len(student.sample_shape) == 3 else None
        if self.codec is not None:
            self.codec.prepare()
            # A codec is no module; its networks must be found as parts of one to be written.
            self.parts = nn.ModuleList(part for part in vars(codec).values() if isinstance(part, nn.Module))

    def forward(self, noise: Tensor, guidance: Tensor, labels: Tensor | None = None) -> Tensor:
        t = torch.ones_like(guidance)
        x = self.student.flow_map(noise, t, torch.zeros_like(t), labels, guidance)
        return x if self.codec is None else self.codec.decode_with_gradient(x).clamp(-1, 1)

    def inputs(self, num: int) -> tuple[Tensor, ...]:
        """``num`` rows to try it with, the same each time."""
        generator = torch.Generator().manual_seed(num)
        noise = torch.randn(num, *self.student.sample_shape, generator=generator)
        labels = [torch.arange(num) % self.student.num_classes] if self.student.num_classes else []
        return noise, torch.linspace(1, 2, num), *labels

    def names(self) -> list[str]:
        """Of the inputs, in order."""
        return ["noise", "guidance", *(["labels"] if self.student.num_classes else [])]


def _traced(model: OneStep, format_name: str) -> Any:
    """The program of ``torch.export``, for any number of samples."""
    batch, examples = torch.export.Dim("batch", min=1), model.inputs(2)
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            model(*examples)  # what it refuses itself it says better than the tracer
            return torch.export.export(model, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    except ConfigError:
        raise
    except Exception as error:  # the tracer raises whatever the network does
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"The student {type(model.student).__name__} cannot be exported as {format_name}: torch.export cannot "
            f"follow its computation ({type(error).__name__}: {reason}). Its own file, student.safetensors, is read by "
            "freeflow."
        ) from error


def _write_program(file: StudentFile, registry: Registry, path: Path) -> str:
    model = OneStep(*_parts(file, registry))
    torch.export.save(_traced(model, "pt2"), path, extra_files={"freeflow.json": json.dumps(about(file))})
    loaded = torch.export.load(path).module()
    _check(model, lambda inputs: loaded(*inputs))
    return f"program of torch.export, inputs {', '.join(model.names())}, any number of samples"


def _write_onnx(file: StudentFile, registry: Registry, path: Path) -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The format onnx needs {', '.join(missing)}. Install it with: pip install 'freeflow-distill[onnx]'"
        )
    import onnxruntime

    model = OneStep(*_parts(file, registry))
    program, names = _traced(model, "onnx"), model.names()
    output = "images" if model.codec is not None else "states"
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        found = torch.onnx.export(
            program, dynamo=True, input_names=names, output_names=[output], dynamic_shapes=None, verbose=False
        )
    assert found is not None
    found.model.metadata_props["freeflow"] = json.dumps(about(file))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    found.save(path, external_data=weights > _MOST_INSIDE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in taken}
        return torch.from_numpy(session.run(None, values)[0])

    worst = _check(model, run)
    script = shutil.copyfile(_PORTABLE / "sample_onnx.py", _script_of(path))
    opset = found.model.opset_imports[""]
    return (
        f"ONNX, opset {opset}, inputs {', '.join(names)}, any number of samples; onnxruntime differs by {worst:.1e} at "
        f"most; sample with {script.name}, which needs no torch"
    )


def _script_of(path: Path) -> Path:
    """What samples from an ONNX file: it knows by its own name which."""
    return path.with_name(f"sample_{path.stem}.py")


def write_pipeline(file: StudentFile, registry: Registry, folder: Path) -> str:
    """A diffusers pipeline with code of its own; other files stay. Raises as :func:`export_student`."""
    student, codec = _parts(file, registry)
    transformer = student.portable()
    decoder = codec.portable() if len(student.sample_shape) == 3 else None
    diffusers_class("DiffusionPipeline", "The format diffusers", "diffusers")
    scheduler = _PORTABLE / "one_step_scheduler.py"
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "FreeFlowPipeline"],
        "transformer": _write_component(folder / "transformer", transformer),
        "vae": _write_component(folder / "vae", decoder) if decoder else [None, None],
        "scheduler": [scheduler.stem, "OneStepScheduler"],
        "guidance_scale": file.guidance,
    }
    (folder / "scheduler").mkdir()
    shutil.copyfile(scheduler, folder / "scheduler" / scheduler.name)
    shutil.copyfile(_PORTABLE / "pipeline.py", folder / "pipeline.py")
    settings = {"_class_name": "OneStepScheduler", "few_steps": student.start_times is StartTimes.ANY}
    _write_json(folder / "scheduler" / "scheduler_config.json", settings)
    _write_json(folder / "model_index.json", index)
    model = OneStep(student, codec)
    network = _load_component(folder / "transformer", transformer)
    vae = _load_component(folder / "vae", decoder) if decoder else None

    @torch.no_grad()
    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        noise, weight, *labels = inputs
        t = torch.ones_like(weight)
        x = noise - network(noise, t, torch.zeros_like(t), labels[0] if labels else None, weight)
        if vae is not None:
            x = x / vae.config.get("scaling_factor", 1.0) + (vae.config.get("shift_factor") or 0.0)
            x = vae.decode(x, return_dict=False)[0]
        return x.clamp(-1, 1)

    _check(model, run)
    return "diffusers pipeline; DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True) loads it"


def _write_component(folder: Path, network: PortableNetwork) -> list[str]:
    """The files of a part of a pipeline, and how ``model_index.json`` names it."""
    folder.mkdir(parents=True)
    save_tensors(folder / "diffusion_pytorch_model.safetensors", network.tensors)
    _write_json(folder / "config.json", {"_class_name": network.class_name, **network.config})
    if network.code is None:
        return ["diffusers", network.class_name]
    shutil.copyfile(network.code, folder / network.code.name)
    return [network.code.stem, network.class_name]


def _load_component(folder: Path, network: PortableNetwork) -> Any:
    """It as diffusers will load it, from the written files."""
    if network.code is None:
        loaded = diffusers_class(network.class_name, "The format diffusers", "diffusers")
    else:
        spec = importlib.util.spec_from_file_location(f"_freeflow_{network.code.stem}", folder / network.code.name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        loaded = getattr(module, network.class_name)
    return loaded.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).eval()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


@torch.no_grad()
def _check(model: OneStep, run: Callable[[tuple[Tensor, ...]], Tensor]) -> float:
    """Largest difference of ``run`` to ``model``, on two numbers of samples. Raises ``CheckpointError`` above 1e-4."""
    worst = 0.0
    for num in (1, 3):
        expected, found = model(*model.inputs(num)), run(model.inputs(num))
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp_min(1)))
    if not worst <= _TOLERANCE:
        raise CheckpointError(
            f"What was exported gives other samples than the student: they differ by {worst:.1e}, where at most "
            f"{_TOLERANCE:g} was expected, so it was not kept. Please report this, with the student's component."
        )
    return worst


def _parts(file: StudentFile, registry: Registry) -> tuple[Student, Codec]:
    return file.student.cpu().eval(), Builder(registry, torch.device("cpu"), seed=0).build("codec", file.codec)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A folder to write in, whose content goes beside ``path`` when all is well, ``path`` itself last."""
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        for made in sorted(folder.iterdir(), key=lambda made: (made.name == path.name, made.name)):
            made.rename(path.with_name(made.name))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Free some space or use another folder.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

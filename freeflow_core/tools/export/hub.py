"""A student as a repository of the Hugging Face hub: its files, a model card made from its run, and the upload."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from freeflow_core.config import ComponentChoice, ComponentConfig, RunConfig, to_yaml
from freeflow_core.config.load import CONFIG_NAME, read_config_file, resolve_choice
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.report import legend, markdown_table, score_table
from freeflow_core.evaluation.student_file import CODEC_FILES, STUDENT_NAME, StudentFile
from freeflow_core.network_file import save_network
from freeflow_core.plugin import Registry
from freeflow_core.tools.export.formats import about, write_pipeline
from freeflow_core.weights.hub import HUB_PREFIX, hub_client, hub_errors

_NO_DATA = "prior"
"""The source that is none."""
_PICTURES = {"comparison.png": "The student beside its teacher, from the same noise", "samples.png": "Samples"}


def save_pretrained(
    file: StudentFile,
    registry: Registry,
    folder: Path,
    *,
    repository: str = "OWNER/NAME",
    licence: str | None = None,
    diffusers: bool = False,
) -> list[str]:
    """Write what a repository of the hub holds: weights, model card, and what the run left; names of the files.

    Args:
        folder: new or empty.
        repository: ``"owner/name"`` that the card's examples name.
        licence: of the weights; None: the teacher's, where it is known.
        diffusers: add a pipeline that ``DiffusionPipeline.from_pretrained`` loads.

    Raises:
        ConfigError: a folder with other files; a student that diffusers cannot load; local files that cannot travel.
        CheckpointError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something already and is left as it is. Name a new or an empty folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_student(file, registry, folder)
        if diffusers:
            write_pipeline(file, registry, folder)
        (folder / "config.json").write_text(json.dumps(about(file), indent=2) + "\n", "utf-8")  # what the hub counts by
        config = _copy_run(file.folder, folder)
        card = model_card(file, registry, folder, config, repository, licence, diffusers)
        (folder / "README.md").write_text(card, "utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}. Free some space or use another folder.") from error
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def push(
    file: StudentFile,
    registry: Registry,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    diffusers: bool = False,
) -> str:
    """Upload what :func:`save_pretrained` writes to ``repository``, made when it is missing; its address.

    Raises:
        ConfigError: no such name, no token, or a setting that forbids the network; and as ``save_pretrained``.
        DownloadError: the hub refuses or cannot be reached; the message says which.
    """
    with hub_errors(repository, writing=True), tempfile.TemporaryDirectory() as temporary:
        client = hub_client(writing=True)
        folder = Path(temporary) / "student"
        save_pretrained(
            file, registry, folder, repository=repository, licence=licence, diffusers=diffusers
        )  # before the repository is made: what cannot be written leaves none behind
        client.create_repo(repository, private=private, exist_ok=True)
        what = f"one-step student of {file.teacher.name}" if file.teacher else "one-step student"
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload a {what}, by freeflow")
        return f"{client.endpoint}/{repository}"


def _write_student(file: StudentFile, registry: Registry, folder: Path) -> None:
    """The student's file; a codec of the user's own travels in ``codec/``, named by paths beside it."""
    codec = file.codec.model_dump(mode="json")
    options = resolve_choice(registry, "codec", ComponentChoice.model_validate(codec), "codec").options
    assert isinstance(options, ComponentConfig)
    own = {name: value.expanduser() for name, value in options if isinstance(value, Path)}
    for name, path in own.items():
        if not path.exists():
            raise ConfigError(f"The student's codec reads {path} (codec.{name}), which is not there to be copied.")
        place = folder / "codec" / name
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            place = place.with_suffix(path.suffix)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
        codec[name] = place.relative_to(folder).as_posix()
    known = {"start_times": file.student.start_times.value, "guidance_weight": file.guidance}
    metadata = {**known, **file.metadata, "codec": codec, CODEC_FILES: list(own)}
    save_network(folder / STUDENT_NAME, file.student.network_state(), metadata)


def _copy_run(run: Path | None, folder: Path) -> RunConfig | None:
    """Configuration (without where it was tracked), scores and pictures of the run, as far as they are there."""
    if run is None or not (run / CONFIG_NAME).is_file():
        return None
    try:
        config = RunConfig.model_validate(read_config_file(run / CONFIG_NAME))
    except ValidationError as error:
        raise ConfigError(f"{run / CONFIG_NAME} is not the configuration of a run: {error}.") from error
    (folder / CONFIG_NAME).write_text(to_yaml(config.model_copy(update={"trackers": ()})), "utf-8")
    files = RunFolder(run)
    newest = max(files.samples.glob("*.png"), default=None)
    copies = {"scores.json": files.scores_file, "comparison.png": files.comparison_file, "samples.png": newest}
    for name, path in copies.items():
        if path is not None and path.is_file():
            shutil.copyfile(path, folder / name)
    return config


def model_card(
    file: StudentFile,
    registry: Registry,
    folder: Path,
    config: RunConfig | None,
    repository: str,
    licence: str | None,
    diffusers: bool,
) -> str:
    """``README.md`` of the files in ``folder``: what the student is, how to sample, scores, settings, licence."""
    from huggingface_hub import ModelCard, ModelCardData

    teacher = file.teacher.name if file.teacher else "unknown"
    licence = licence or teacher_licence(registry, file.teacher)
    source = config.source.name if config is not None else None
    tags = ["freeflow", "one-step", "distillation"] + ["data-free"] * (source == _NO_DATA) + ["diffusers"] * diffusers
    data = ModelCardData(
        license=licence.lower().replace(" ", "-") if licence else "unknown",
        library_name="diffusers" if diffusers else "freeflow",
        pipeline_tag="unconditional-image-generation",
        tags=tags,
    )
    how = {None: "", _NO_DATA: "without data, from noise alone"}.get(source, f"with the data `{source}`")
    lines = [
        f"# {repository.partition('/')[2] or repository}",
        "",
        f"A one-step student of the teacher `{teacher}`{f', distilled {how}' if how else ''} with "
        "[freeflow](https://pypi.org/project/freeflow-distill/): one network evaluation makes an image.",
        "",
    ]
    for name, title in _PICTURES.items():
        if (folder / name).is_file():
            lines += [f"![{title}]({name})", "", f"*{title}.*", ""]
    lines += [*_usage(repository, file, diffusers), ""]
    scores = folder / "scores.json"
    if config is not None and scores.is_file():
        lines += ["## Scores", "", *score_table(json.loads(scores.read_text("utf-8")), config), "", legend(config), ""]
    lines += ["## Training", "", *markdown_table(["", ""], _facts(file, config)), ""]
    if config is not None:
        lines += [f"Every setting, defaults included, is in [{CONFIG_NAME}]({CONFIG_NAME}).", ""]
    whose = f"are under {licence}" if licence else "are under a licence that is not known here"
    lines += ["## Licence", "", f"The teacher's weights {whose}; what it asks holds for their student too.", ""]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def teacher_licence(registry: Registry, teacher: ComponentChoice | None) -> str | None:
    """Of the weights that a teacher ships with or fetches, where there is just one; None: unknown."""
    known = registry.components("teacher")
    if teacher is None or teacher.name not in known or teacher.model_dump(mode="json").get("checkpoint"):
        return None
    if own := known[teacher.name].licence:
        return own
    teachers = sorted(known, key=len, reverse=True)

    def owner(weight: str) -> str | None:
        return next((name for name in teachers if weight.startswith(f"{name}-")), None)

    found = {weight.licence for weight in registry.weights().values() if owner(weight.name) == teacher.name}
    return next(iter(found)) or None if len(found) == 1 else None


def _usage(repository: str, file: StudentFile, diffusers: bool) -> list[str]:
    classes = file.student.num_classes
    labels = ", labels=[0, 1]" if classes else ""
    lines = [
        "## Sample",
        "",
        "```bash",
        "pip install freeflow-distill",
        f"freeflow sample --student {HUB_PREFIX}{repository}",
        "```",
        "",
        "```python",
        "import freeflow_core as freeflow",
        "",
        f'images = freeflow.load_student("{HUB_PREFIX}{repository}").sample(16{labels})',
        'images.save("samples.png")',
        "```",
    ]
    if diffusers:
        lines += [
            "",
            "With diffusers alone (it runs the code in this repository):",
            "",
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            f'pipeline = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)',
            f"images = pipeline({'class_labels=[0, 1], ' if classes else ''}seed=0).images",
            "```",
        ]
    return lines


def _facts(file: StudentFile, config: RunConfig | None) -> Iterator[tuple[str, str]]:
    metadata, shape = file.metadata, " x ".join(map(str, file.student.sample_shape))
    yield "teacher", f"`{file.teacher.name}`" if file.teacher else "unknown"
    yield "objective", f"`{metadata.get('objective', 'unknown')}`"
    if config is not None:
        yield "data-free", "yes" if config.source.name == _NO_DATA else f"no: `{config.source.name}`"
    weights = sum(parameter.numel() for parameter in file.student.parameters())
    yield "student", f"`{metadata.get('component')}`, {weights:,} weights, states {shape}, codec `{file.codec.name}`"
    yield "guidance", "none" if file.guidance == 1 else f"scored at {file.guidance:g}"
    if "images" in metadata:
        yield "images seen", f"{metadata['images']:,}"
    if config is not None:
        optimizer, training = config.training.optimizer, config.training
        yield "batch", f"{training.batch_size:,}"
        yield "learning rate", f"{optimizer.learning_rate:g}, {optimizer.schedule}"
        yield "precision", config.runtime.precision
    if "seed" in metadata:
        yield "seed", str(metadata["seed"])
    if "freeflow_version" in metadata:
        yield "freeflow", str(metadata["freeflow_version"])

"""``freeflow view``: a web server for one person on this machine, of the standard library alone."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, final
from urllib.parse import parse_qs, urlsplit

import yaml

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces.journal import Journal, Picture

if TYPE_CHECKING:
    from freeflow_core.api import TrainedStudent
    from freeflow_core.config import EvaluationConfig
    from freeflow_core.plugin import Manager

MOST_SAMPLES = 256
"""Samples of one request."""
_POINTS = 400
"""Of one curve: more cannot be told apart on a screen."""


@final
@dataclass(frozen=True)
class Answer:
    """What a request gets: bytes, their media type, and seconds of sampling where there were any."""

    body: bytes
    media_type: str = "application/json"
    seconds: float | None = None


@final
class Gallery:
    """The runs of a folder, read anew at each request, so that one that goes on shows how it goes on.

    Args:
        folder: of a run, of a comparison, or one that holds some.

    Raises:
        ConfigError: no run there.
    """

    def __init__(self, folder: Path, manager: Manager) -> None:
        self.folder, self._manager = folder, manager
        self._students: dict[Path, tuple[int, TrainedStudent]] = {}
        self._sampling = Lock()
        if not self.runs():
            raise ConfigError(
                f"{folder} holds no run. Expected the folder of a run or of a comparison, which holds run.json, or a "
                "folder of such folders, such as runs."
            )

    def runs(self) -> dict[str, Path]:
        """Folders of runs by name: the folder itself, those in it, and those of a comparison in it."""
        inner = (sorted(self.folder.glob(f"{depth}run.json")) for depth in ("*/", "*/*/"))
        files = [self.folder / "run.json", *chain.from_iterable(inner)]
        found = [file.parent for file in files if file.is_file()]
        return {path.relative_to(self.folder).as_posix() if path != self.folder else path.name: path for path in found}

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        """Raises ``KeyError``: no such page, run or picture; ``FreeflowError``: a request that cannot be met."""
        if path == "/":
            return Answer(resources.files(__package__).joinpath("page.html").read_bytes(), "text/html; charset=utf-8")
        runs = self.runs()
        if path == "/runs.json":
            return _json([{"name": name, **_state(run)} for name, run in runs.items()])
        folder = runs[query["run"]]
        if path == "/run.json":
            return _json({**_state(folder), **self._about(folder)})
        if path == "/curves.json":
            return _json(dict(_curves(folder)))
        if path == "/picture.png":
            return Answer(_pictures(folder)[int(query["number"])].path.read_bytes(), "image/png")
        if path == "/sample.png":
            return self._sample(folder, query)
        raise KeyError(path)

    def _about(self, folder: Path) -> dict[str, Any]:
        from freeflow_core.evaluation.report import score_cells

        journal = Journal(folder)
        settings, config = "", dict[str, Any]()
        for name in ("config.yaml", "comparison.yaml"):
            if (file := folder / name).is_file():
                settings = file.read_text("utf-8")
                config = yaml.safe_load(settings) or {}
        scores = folder / "scores.json"
        titles, rows = (
            score_cells(json.loads(scores.read_text("utf-8")), _evaluation(config)) if scores.is_file() else ([], [])
        )
        table = folder / "comparison.md"
        return {
            "config": settings,
            "about": {kind: _name(config.get(kind)) for kind in ("teacher", "student", "objective", "source", "seed")},
            "total": (config.get("training") or {}).get("images"),
            "table": {"titles": titles, "rows": rows},
            "text": table.read_text("utf-8") if table.is_file() else "",
            "pictures": [{"name": picture.name, "images": picture.images} for picture in _pictures(folder)],
            "command": journal.status().get("command"),
            "student": self._student_facts(folder, config),
        }

    def _student_facts(self, folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
        """What the page's controls need; None while there is no student to sample."""
        from freeflow_core.interfaces import StartTimes

        if (student := self._student(folder)) is None:
            return None
        options = config.get("objective") or {}
        weights = [options[key] for key in ("guidance_min", "guidance_max") if options.get(key) is not None]
        return {
            "classes": student.student.num_classes or 0,
            "guidance": student.guidance,
            "guidance_min": min([*weights, student.guidance]),
            "guidance_max": max([*weights, student.guidance]),
            "few_steps": student.student.start_times is not StartTimes.PRIOR,
            "text": repr(student),
        }

    def _student(self, folder: Path) -> TrainedStudent | None:
        from freeflow_core.api import load_student

        file = folder / "student.safetensors"
        if not file.is_file():
            return None
        changed = file.stat().st_mtime_ns
        with self._sampling:
            if self._students.get(file, (None,))[0] != changed:
                self._students = {file: (changed, load_student(file, manager=self._manager))}  # one at a time
            return self._students[file][1]

    def _sample(self, folder: Path, query: dict[str, str]) -> Answer:
        if (student := self._student(folder)) is None:
            raise ConfigError("This run has no student yet: it is written at the end.")
        try:
            num, seed, steps = (int(query.get(key, usual)) for key, usual in (("num", 16), ("seed", 0), ("steps", 1)))
            guidance = float(query["guidance"]) if "guidance" in query else None
            label = int(query["label"]) if query.get("label", "") not in ("", "balanced") else None
        except ValueError as error:
            raise ConfigError(f"num, seed, steps, guidance and label are numbers: {error}.") from None
        if num > MOST_SAMPLES:
            raise ConfigError(f"At most {MOST_SAMPLES} samples at once, got {num}; `freeflow sample` writes more.")
        with self._sampling:
            start = time.perf_counter()
            images = student.sample(
                num, labels="balanced" if label is None else label, guidance=guidance, seed=seed, steps=steps
            )
            seconds = time.perf_counter() - start
        stream = io.BytesIO()
        images.grid(min(num, 10)).save(stream, "png")
        return Answer(stream.getvalue(), "image/png", seconds)


def make_server(gallery: Gallery, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers this machine alone unless ``host`` says otherwise; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    names = {"localhost", "127.0.0.1", "[::1]", host}

    @final
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in names and host != "0.0.0.0":
                # another site's page that had its name resolved to this machine
                return self._send(HTTPStatus.FORBIDDEN, Answer(b"", "text/plain"))
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            try:
                self._send(HTTPStatus.OK, gallery.answer(parts.path, query))
            except (KeyError, IndexError, ValueError, FileNotFoundError):
                self._send(HTTPStatus.NOT_FOUND, _json({"error": f"There is nothing at {self.path}."}))
            except FreeflowError as error:
                self._send(HTTPStatus.BAD_REQUEST, _json({"error": str(error)}))

        def _send(self, status: HTTPStatus, answer: Answer) -> None:
            self.send_response(status)
            self.send_header("Content-Type", answer.media_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if answer.seconds is not None:
                self.send_header("X-Seconds", f"{answer.seconds:.3f}")
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the terminal belongs to the address."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be had ({error.strerror}). Choose another with --port.") from None


def _evaluation(config: Mapping[str, Any]) -> EvaluationConfig | None:
    """How a run was scored, for the titles of its rows; None where this version cannot read it."""
    from freeflow_core.config import EvaluationConfig

    try:
        return EvaluationConfig.model_validate(config["evaluation"])
    except (KeyError, ValueError):
        return None


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode())


def _state(folder: Path) -> dict[str, Any]:
    status = Journal(folder).status()
    return {"status": status.get("status", "unknown"), "images": status.get("images", 0)}


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, dict) else part


def _pictures(folder: Path) -> list[Picture]:
    """As the journal lists them, those that are gone left out."""
    found = (artifact for artifact, _ in Journal(folder).artifacts())
    return [artifact for artifact in found if isinstance(artifact, Picture) and artifact.path.is_file()]


def _curves(folder: Path) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Finite values over images by name; of long curves, evenly chosen points and the last."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record, _ in Journal(folder).metrics():
        for name, value in record.values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((record.images, value))
    for name, points in curves.items():
        every = math.ceil(len(points) / _POINTS)
        yield name, points[-1::-every][::-1]

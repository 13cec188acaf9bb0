"""A run to send, what MLflow must then have, and an MLflow in memory whose process can be killed at any moment."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image


def record(journal, steps=range(50), sender=None):
    """Metrics, one of them never finite, a picture and a file."""
    written = [journal.add_metrics(step * 64, {"loss": float(step), "odd": float("inf")}) for step in steps]
    picture, table = journal.folder / f"images-{steps.stop}.png", journal.folder / "table.txt"
    Image.new("RGB", (8, 8), (7, 8, 9)).save(picture)
    table.write_text("a table")
    for one in (*written, journal.add_picture(640, "samples", picture), journal.add_file(640, table)):
        if sender is not None:
            sender.recorded(one)


def check_complete(client, run_id, steps=50):
    """MLflow has what :func:`record` wrote, once."""
    history = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(step * 64, float(step)) for step in range(steps)]
    run = client.get_run(run_id)
    assert run.data.tags["nonfinite/odd"] == str(steps)
    assert run.data.params["training.batch_size"] == "64"
    pictures = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    assert len(pictures) == 1
    assert "samples+step+640" in pictures[0]
    assert Path(client.download_artifacts(run_id, "table.txt")).read_text() == "a table"
    assert "name: first" in Path(client.download_artifacts(run_id, "config.yaml")).read_text()


class Killed(BaseException):
    """No `except Exception` survives it either."""


class Moments:
    """Requests, and writes of the cursor: each is a moment before it happens and one after. Killed at ``die_at``."""

    def __init__(self):
        self.die_at: int | None = None

    def surround(self, action):
        def happen(*arguments, **named):
            self._pass()
            result = action(*arguments, **named)
            self._pass()
            return result

        return happen

    def _pass(self):
        if self.die_at is not None:
            self.die_at -= 1
            if self.die_at < 0:
                self.die_at = None
                raise Killed


class Client:
    """The methods of MLflow's client that the tracker calls, on runs in memory."""

    def __init__(self):
        self.runs: list[Any] = []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active")

    def search_runs(self, experiments, condition, max_results):
        found = re.fullmatch(r"tags.`(.+)` = '(.+)'", condition)
        return [run for run in self.runs if run.data.tags.get(found[1]) == found[2]]

    def create_run(self, experiment, start, tags, name):
        info = SimpleNamespace(run_id=f"run-{len(self.runs)}", status="RUNNING")
        data = SimpleNamespace(tags=tags, params={}, metrics={}, rows=[], pictures=[], files=Counter())
        self.runs.append(SimpleNamespace(info=info, data=data))
        return self.runs[-1]

    def update_run(self, run_id, status):
        self._run(run_id).info.status = status

    def set_terminated(self, run_id, status, time):
        self._run(run_id).info.status = status

    def set_tag(self, run_id, name, value):
        self._run(run_id).data.tags[name] = value

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=True):
        data = self._run(run_id).data
        data.rows += metrics
        data.metrics |= {metric.key: metric.value for metric in metrics}
        data.params |= {param.key: param.value for param in params}
        data.tags |= {tag.key: tag.value for tag in tags}

    def get_metric_history(self, run_id, name):
        return [metric for metric in self._run(run_id).data.rows if metric.key == name]

    def list_artifacts(self, run_id, folder):
        return [SimpleNamespace(path=path) for path in self._run(run_id).data.pictures]

    def log_image(self, run_id, image, file, name, step, time, synchronous):
        pictures = self._run(run_id).data.pictures
        pictures.append(f"images/{name}+step+{step}+timestamp+{time}+{len(pictures)}.png")

    def log_text(self, run_id, text, path):
        self._run(run_id).data.files[path] = 1

    def log_artifact(self, run_id, path, folder=None):
        self._run(run_id).data.files[(Path(folder or "") / Path(path).name).as_posix()] = 1

    def _run(self, run_id):
        return self.runs[int(run_id.removeprefix("run-"))]

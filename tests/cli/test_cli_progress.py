import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from freeflow_cli.console import messages, say
from freeflow_cli.progress import LineDisplay, LiveDisplay, ProgressObserver, choose_display
from rich.console import Console

from freeflow_core.plugin import Manager

METRICS = {
    "correction_residual": 0.5,
    "fake_velocity/loss": 3.0,
    "images_per_second": 50.0,
    "learning_rate": 1e-4,
    "student/gradient_norm": 9.0,
    "student/loss": 0.123456,
    "student/prediction_loss": 0.25,
}
RUN = SimpleNamespace(name="toy", command="distill", folder=Path("runs/toy"), resumed=False)


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def plain(now):
    stream = io.StringIO()

    def display(console):
        return LineDisplay(console, now=now)

    return ProgressObserver(Console(file=stream, width=40), display), stream


def at(images):
    return SimpleNamespace(images=images, total_images=1000)


def test_cli_progress_observer_fits_the_hooks():
    manager = Manager()
    observer, stream = plain(Clock())
    manager.register(observer, "console-progress")
    hook = manager.hook
    hook.freeflow_run_started(run=RUN)
    hook.freeflow_step_finished(run=RUN, progress=at(1000), metrics=METRICS)
    hook.freeflow_checkpoint_saved(run=RUN, progress=at(1000), path=Path("runs/toy/checkpoints/a"))
    hook.freeflow_evaluation_advanced(run=RUN, row="teacher_1_step", done=50, total=50)
    hook.freeflow_evaluation_finished(run=RUN, progress=at(500), scores={"evaluation/student/fid": 2.5})
    hook.freeflow_run_finished(run=RUN, status="finished")
    assert stream.getvalue().splitlines() == [
        "Starting distill run 'toy' in runs/toy",
        "distill: 1,000/1,000 images (100%), 50 images/s, loss 0.1235, prediction loss 0.25, fake velocity/loss 3, correction residual 0.5",
        "Checkpoint at 1,000 images: runs/toy/checkpoints/a",
        "evaluate teacher 1 step: 50/50 samples (100%)",
        "Scores at 500 images: student/fid 2.5",
    ]


def test_cli_lines_come_at_most_every_ten_seconds_and_at_the_end():
    clock = Clock()
    observer, stream = plain(clock)
    for second in range(31):
        clock.seconds = 100.0 + second
        observer.freeflow_step_finished(RUN, at(10 * second), METRICS)
    counts = [line.split("images")[0].split()[-1] for line in stream.getvalue().splitlines()]
    assert counts == ["100/1,000", "200/1,000", "300/1,000"]
    assert "0:18 left" in stream.getvalue().splitlines()[0]
    observer.freeflow_step_finished(RUN, at(1000), METRICS)
    assert "1,000/1,000" in stream.getvalue()


def test_cli_final_scores_are_left_to_the_table():
    observer, stream = plain(Clock())
    observer.freeflow_evaluation_finished(RUN, at(1000), {"evaluation/student/fid": 2.5})
    assert stream.getvalue() == ""


def test_cli_intermediate_scores_are_few_and_without_costs():
    observer, stream = plain(Clock())
    scores = {"evaluation/student/evaluations": 1.0} | {f"evaluation/student/s{i}": float(i) for i in range(6)}
    observer.freeflow_evaluation_finished(RUN, at(10), scores)
    assert "evaluations" not in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("student/s3 3, and 2 more")


@pytest.mark.parametrize(("interactive", "kind"), [(True, LiveDisplay), (False, LineDisplay)])
def test_cli_display_follows_the_terminal(interactive, kind):
    console = Console(file=io.StringIO(), force_terminal=interactive, force_interactive=interactive)
    assert isinstance(choose_display(console), kind)


def test_cli_live_bar_shows_count_speed_time_and_losses_in_80_columns():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, force_interactive=True, width=80, color_system=None)
    observer = ProgressObserver(console, LiveDisplay)
    observer.freeflow_step_finished(RUN, at(500), METRICS)
    observer.freeflow_checkpoint_saved(RUN, at(500), Path("[a]"))
    observer.close()
    text = stream.getvalue()
    observer.close()
    assert stream.getvalue() == text
    for part in (
        "distill",
        "500/1,000 images",
        "50/s",
        "0:10 left",
        "loss 0.1235, prediction loss 0.25",
        "correction residual",
        "Checkpoint at 500 images: [a]",
    ):
        assert part in text


def test_cli_a_new_picture_of_samples_is_named_once(tmp_path):
    observer, stream = plain(Clock())
    run = SimpleNamespace(name="toy", command="distill", folder=tmp_path, resumed=False)
    (tmp_path / "samples").mkdir()
    for images in (100, 200):
        (tmp_path / "samples" / f"images-{images}.png").write_bytes(b"")
        observer.freeflow_step_finished(run, at(images), METRICS)
        observer.freeflow_step_finished(run, at(images + 50), METRICS)
    told = [line for line in stream.getvalue().splitlines() if line.startswith("Samples: ")]
    assert [Path(line).name for line in told] == ["images-100.png", "images-200.png"]


def test_cli_pictures_of_one_run_do_not_hide_those_of_the_next(tmp_path):
    """Of a comparison; those that a resumed run finds are nothing new."""
    observer, stream = plain(Clock())
    for name, there, made in (("first", [], [100, 200]), ("second", [], [100]), ("resumed", [100], [200])):
        run = SimpleNamespace(name=name, command="distill", folder=tmp_path / name, resumed=bool(there))
        (run.folder / "samples").mkdir(parents=True)
        for images in there:
            (run.folder / "samples" / f"images-{images}.png").write_bytes(b"")
        observer.freeflow_run_started(run)
        observer.freeflow_step_finished(run, at(50), METRICS)
        for images in made:
            (run.folder / "samples" / f"images-{images}.png").write_bytes(b"")
            observer.freeflow_step_finished(run, at(images), METRICS)
        observer.freeflow_run_finished(run, "finished")
    told = [Path(line) for line in stream.getvalue().splitlines() if line.startswith("Samples: ")]
    assert [(path.parts[-3], path.name) for path in told] == [
        ("first", "images-100.png"), ("first", "images-200.png"), ("second", "images-100.png"),
        ("resumed", "images-200.png"),
    ]  # fmt: skip


def test_cli_lines_are_broken_between_words_and_paths_stay_whole():
    stream = io.StringIO()
    path = "/".join(["runs", "a" * 90, "samples"])
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=80))
    display.note(f"Starting distill run 'digits-freeflow' in runs/d80, settings of the preset digits. Samples: {path}")
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert path in lines
    assert all(len(line) <= 80 for line in lines if line != path)
    assert " ".join(lines).split() == ["Starting", "distill", "run", "'digits-freeflow'", "in", "runs/d80,", "settings",
                                       "of", "the", "preset", "digits.", "Samples:", path]  # fmt: skip


def test_cli_what_is_told_beside_a_live_bar_stands_on_lines_of_its_own(monkeypatch):
    """From a tracker's thread, for one."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    display = LiveDisplay(messages())
    display.advance("distill", 500, 1000, details="loss 0.1235")
    say("MLflow run 1: mlflow ui")
    display.close()
    told = stream.getvalue().partition("MLflow run 1: mlflow ui")
    assert told[1]
    assert told[0].endswith("\x1b[2K"), "the bar is taken away first"
    assert told[2].startswith("\n")

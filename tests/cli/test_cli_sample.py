"""Labels, guidance interval, precision and progress of ``freeflow sample``."""

import io
from pathlib import Path

import pytest
from freeflow_cli.commands.sample import parse_interval, parse_labels
from freeflow_cli.progress import CountProgress, LineDisplay
from rich.console import Console

from freeflow_core.errors import ConfigError, Interrupted


def test_cli_sample_passes_its_options(freeflow, api, tmp_path):
    result = freeflow(
        "sample", "--run", "runs/a", "--teacher", "wise", "--sampler", "heun", "--num", "8", "--steps", "4",
        "--guidance-weight", "2", "--guidance-interval", "0.2,0.9", "--labels", "0,5-7", "--seed", "3",
        "--format", "webp", "--precision", "bf16", "--device", "cpu", "--output", str(tmp_path), "--set", "teacher.power=0.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = api.calls[0][1]
    assert callable(arguments["on_progress"])
    assert arguments.items() >= {
        "student": Path("runs/a"), "teacher": "wise", "sampler": "heun", "num": 8, "steps": 4, "guidance_weight": 2.0,
        "guidance_interval": (0.2, 0.9), "labels": [0, 5, 6, 7], "seed": 3, "image_format": "webp", "precision": "bf16",
        "device": "cpu", "settings": ("teacher.power=0.5",),
    }.items()  # fmt: skip
    assert "8 samples, 2 network evaluations and 12.5 ms each." in result.stdout
    assert str(tmp_path / "grid.png") in result.stdout


def test_cli_sample_takes_a_student_by_its_own_name(freeflow, api):
    assert freeflow("sample", "--student", "freeflow-xl-2-256", "--labels", "random").exit_code == 0
    assert (api.calls[0][1]["student"], api.calls[0][1]["labels"]) == (Path("freeflow-xl-2-256"), "random")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "Nothing to sample from"),
        (("--teacher", "wize"), "Did you mean 'wise'?"),
        (("--teacher", "wise", "--sampler", "huen"), "Did you mean 'heun'?"),
        (("--teacher", "wise", "--labels", "3-1"), "--labels '3-1'"),
        (("--teacher", "wise", "--guidance-interval", "0.9,0.2"), "LOW,HIGH"),
        (("--teacher", "wise", "--jump-to", "1"), "--jump-to 1"),
        (("--teacher", "wise", "--format", "gif"), "gif"),
    ],
)
def test_cli_sample_refuses_bad_requests_before_torch(freeflow, api, arguments, expected):
    result = freeflow("sample", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert api.calls == []


@pytest.mark.parametrize(("text", "labels"), [("3", [3]), ("0, 2", [0, 2]), ("1-3,9", [1, 2, 3, 9]), ("4-4", [4])])
def test_cli_labels(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1,,2", "1.5"])
def test_cli_labels_refuse_anything_else(text):
    with pytest.raises(ConfigError, match="list of classes"):
        parse_labels(text)


@pytest.mark.parametrize("text", ["", "0.5", "-0.1,1", "0,1.1", "a,b", "0,1,2", "nan,1"])
def test_cli_guidance_interval_refuses_anything_else(text):
    with pytest.raises(ConfigError, match="interval of times"):
        parse_interval(text)


def test_cli_sample_closes_its_display_when_it_is_interrupted(freeflow, api, monkeypatch):
    closed = []

    def stopped(**_):
        raise Interrupted("64 of 300 samples are finished and stay in x.")

    monkeypatch.setattr("freeflow_core.api.sample", stopped)
    monkeypatch.setattr(CountProgress, "close", lambda self: closed.append(True))
    result = freeflow("sample", "--teacher", "wise")
    assert (result.exit_code, closed) == (75, [True])
    assert "Interrupted: 64 of 300 samples" in result.stderr


def test_cli_sample_progress_shows_rate_and_time_left_without_the_first_batch():
    clock = iter([100.0, 110.0, 120.0])
    text = io.StringIO()
    display = LineDisplay(Console(file=text, width=100), interval=0, now=lambda: 0.0)
    progress = CountProgress("sample", display, now=lambda: next(clock))
    progress.advance(5000, 10000)
    for _ in range(3):
        progress.advance(6000, 10000)
    progress.advance(10000, 10000)
    progress.close()
    assert text.getvalue().splitlines() == [
        "sample: 5,000/10,000 images (50%)",
        "sample: 6,000/10,000 images (60%), 100 images/s, 0:40 left",
        "sample: 10,000/10,000 images (100%), 250 images/s",
    ]

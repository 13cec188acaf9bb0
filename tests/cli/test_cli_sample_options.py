"""Labels, guidance interval, precision and progress of ``freeflow sample``."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from cli_support import FakeApi
from freeflow_cli.commands.sample import parse_interval
from freeflow_cli.progress import CountProgress, LineDisplay
from rich.console import Console
from typer.testing import Result

from freeflow_core.errors import ConfigError, Interrupted

Freeflow = Callable[..., Result]


def test_cli_sample_passes_what_decides_the_samples(freeflow: Freeflow, api: FakeApi) -> None:
    result = freeflow(
        "sample", "--teacher", "wise", "--labels", "random", "--guidance-interval", "0.2,0.9", "--precision", "bf16",
        "--format", "webp",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = api.calls[0][1]
    assert (arguments["labels"], arguments["guidance_interval"]) == ("random", (0.2, 0.9))
    assert (arguments["precision"], arguments["image_format"]) == ("bf16", "webp")
    assert callable(arguments["on_progress"])


@pytest.mark.parametrize("text", ["", "0.5", "0.9,0.2", "-0.1,1", "0,1.1", "a,b", "0,1,2", "nan,1"])
def test_cli_guidance_interval_refuses_anything_else(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an interval of times"):
        parse_interval(text)


def test_cli_sample_closes_its_display_when_it_is_interrupted(
    freeflow: Freeflow, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def stopped(**_: object) -> None:
        raise Interrupted("64 of 300 samples are finished and stay in x.")

    monkeypatch.setattr("freeflow_core.api.sample", stopped)
    monkeypatch.setattr(CountProgress, "close", lambda self: closed.append(True))
    result = freeflow("sample", "--teacher", "wise")
    assert (result.exit_code, closed) == (1, [True])
    assert "Interrupted: 64 of 300 samples" in result.stderr


def test_cli_sample_progress_shows_rate_and_time_left_without_the_first_batch() -> None:
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

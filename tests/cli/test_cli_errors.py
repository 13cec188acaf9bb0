import pytest
from freeflow_cli.main import build_app
from typer.main import get_command

from freeflow_core.errors import ConfigError, NonFiniteError


def paragraph(result):
    """The one paragraph on stderr; nothing else may be there."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--teacher", "wize"), "Unknown teacher 'wize'. Did you mean 'wise'?"),
        (("--preset", "digit"), "Did you mean 'digits'?"),
        (("--set", "objective.powr=0"), "Unknown setting 'objective.powr'"),
        (("--set", "no-equals-sign"), "not of the form a.b=value"),
        (("--config", "absent.yaml"), "absent.yaml cannot be read"),
    ],
)
def test_cli_usage_errors_are_one_paragraph_with_code_2(freeflow, arguments, expected):
    result = freeflow("distill", *arguments)
    assert result.exit_code == 2
    assert paragraph(result).startswith("Error: ")
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"), [(("distill", "--teachr", "x"), "--teacher"), (("distil",), "distill")]
)
def test_cli_parser_errors_suggest_and_exit_2(freeflow, arguments, expected):
    result = freeflow(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "Traceback" not in result.output


def test_cli_markup_in_a_message_is_printed_as_it_is(freeflow):
    result = freeflow("distill", "--teacher", "[bold]wise[/bold]")
    assert "Unknown teacher '[bold]wise[/bold]'" in paragraph(result)


def test_cli_failures_of_a_run_exit_1(freeflow, api):
    api.failure = NonFiniteError("A step produced NaN.")
    result = freeflow("distill")
    assert result.exit_code == 1
    assert paragraph(result) == "Error: A step produced NaN."


def test_cli_unexpected_errors_name_type_and_debug(freeflow, api):
    api.failure = ZeroDivisionError("division\nby zero")
    result = freeflow("distill")
    assert result.exit_code == 1
    assert paragraph(result).startswith("Unexpected error: ZeroDivisionError: division by zero. Run again with --debug")


def test_cli_interrupt_is_one_line(freeflow, api):
    api.failure = KeyboardInterrupt()
    result = freeflow("distill")
    assert result.exit_code == 75
    assert paragraph(result).startswith("Interrupted: ")


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug"], ""), (["distill", "--debug"], ""), ([], "1")])
def test_cli_debug_shows_the_traceback_anywhere(freeflow, api, arguments, variable, monkeypatch):
    monkeypatch.setenv("FREEFLOW_DEBUG", variable)
    api.failure = ZeroDivisionError("oh")
    result = freeflow(*arguments, *(() if "distill" in arguments else ("distill",)))
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "Unexpected error: ZeroDivisionError: oh." in result.stderr
    assert "Run again with --debug" not in result.stderr


def test_cli_errors_reach_a_caller_that_asks_for_them(manager):
    with pytest.raises(ConfigError):
        get_command(build_app(manager)).main(["distill", "--teacher", "nobody"], standalone_mode=False)

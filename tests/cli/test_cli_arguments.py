from __future__ import annotations

from pathlib import Path

import pytest
from freeflow_cli.arguments import hoist_debug, take_plugin_files, wants_debug
from hypothesis import given
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError

WORDS = st.lists(st.sampled_from(["distill", "--seed", "3", "--debug", "--", "--set", "a=b"]), max_size=8)


@given(WORDS)
def test_cli_hoisting_debug_only_moves_it(arguments: list[str]) -> None:
    hoisted = hoist_debug(arguments)
    assert wants_debug(hoisted) == wants_debug(arguments)
    assert hoist_debug(hoisted) == hoisted
    end = arguments.index("--") if "--" in arguments else len(arguments)
    assert [word for word in hoisted if word != "--debug"] == [word for word in arguments if word != "--debug"]
    assert arguments[end:] == (hoisted[hoisted.index("--") :] if "--" in hoisted else [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plugin", "a.py", "plugins", "list"],
        ["plugins", "list", "--plugin", "a.py"],
        ["plugins", "--plugin=a.py", "list"],
    ],
)
def test_cli_plugin_files_are_taken_from_anywhere(arguments: list[str]) -> None:
    assert take_plugin_files(arguments) == (["plugins", "list"], [Path("a.py")])


def test_cli_plugin_files_after_a_double_dash_are_not_ours() -> None:
    assert take_plugin_files(["mine", "--", "--plugin", "a.py"]) == (["mine", "--", "--plugin", "a.py"], [])


def test_cli_plugin_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="--plugin needs a file"):
        take_plugin_files(["plugins", "list", "--plugin"])

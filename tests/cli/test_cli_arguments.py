from pathlib import Path

import pytest
from freeflow_cli.main import hoist_flags, take_plugin_files, wants_debug
from hypothesis import given
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError

WORDS = st.lists(st.sampled_from(["distill", "--seed", "3", "--debug", "--trust", "--", "--set", "a=b"]), max_size=8)


@given(WORDS)
def test_cli_hoisting_flags_only_moves_them(arguments):
    hoisted = hoist_flags(arguments)
    assert wants_debug(hoisted) == wants_debug(arguments)
    assert hoist_flags(hoisted) == hoisted
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = {"--debug", "--trust"}
    assert [word for word in hoisted if word not in flags] == [word for word in arguments if word not in flags]
    assert set(hoisted) == set(arguments)
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    num_flags = len(flags & set(before))
    assert set(hoisted[:num_flags]) == flags & set(before)
    assert arguments[end:] == (hoisted[hoisted.index("--") :] if "--" in hoisted else [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plugin", "a.py", "plugins", "list"],
        ["plugins", "list", "--plugin", "a.py"],
        ["plugins", "--plugin=a.py", "list"],
    ],
)
def test_cli_plugin_files_are_taken_from_anywhere(arguments):
    assert take_plugin_files(arguments) == (["plugins", "list"], [Path("a.py")])


def test_cli_plugin_files_after_a_double_dash_are_not_ours():
    assert take_plugin_files(["mine", "--", "--plugin", "a.py"]) == (["mine", "--", "--plugin", "a.py"], [])


def test_cli_plugin_without_a_file_is_refused():
    with pytest.raises(ConfigError, match="--plugin needs a file"):
        take_plugin_files(["plugins", "list", "--plugin"])


def test_cli_trust_is_a_permission_of_the_session(freeflow, manager):
    assert freeflow("plugins", "list").exit_code == 0
    assert not manager.trusted
    assert freeflow("plugins", "list", "--trust").exit_code == 0
    assert manager.trusted

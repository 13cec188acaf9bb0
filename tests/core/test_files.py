"""Files written whole or not at all, and what changed between two descriptions."""

import pytest

from freeflow_core.config.load import differences
from freeflow_core.files import replacing, write_text


def test_what_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("new, but")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_parent_that_is_a_file_is_the_error_told(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a" / "b.txt", "y")


def test_differences_go_by_dotted_names_and_json_values():
    old = {"seed": 0, "labels": [1, 2], "teacher": {"name": "digits", "weights": "ab"}, "logging": {"every": 1}}
    same = {"seed": 0, "labels": (1, 2), "teacher": {"name": "digits", "weights": "ab"}, "logging": {"every": 2}}
    assert differences(old, same, free=("logging",)) == []
    assert differences(old, {"seed": 1, "labels": [1, 2], "teacher": None}, free=("logging",)) == [
        "seed: 0 -> 1",
        'teacher.name: "digits" -> none',
        'teacher.weights: "ab" -> none',
    ]

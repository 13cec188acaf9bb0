"""Errors name options to the command line, and arguments to Python."""

import re
import typing

import pytest

import freeflow_core as freeflow
from freeflow_core import api
from freeflow_core.api.wording import in_python, speaks_python
from freeflow_core.errors import ConfigError, Interrupted


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("Choose one with --teacher NAME.", 'Choose one with teacher="NAME".'),
        ("Remove it (--set source=prior); then", 'Remove it (source="prior"); then'),
        ("e.g. --set objective.weight_power=0.5.", 'e.g. objective={"weight_power": 0.5}.'),
        ("with --set 'a.b=[x, {name: y}]'.", 'with a={"b": ["x", {"name": "y"}]}.'),
        (
            "--source image-folder --set source.path=FOLDER --set codec=sd-vae, or --source latents.",
            'source={"name": "image-folder", "path": "FOLDER"}, codec="sd-vae", or source="latents".',
        ),
        ("--set 'images' is not", 'settings=["images"] is not'),
        ("--set-for freeflow:objective.balance=weighted.", 'settings_for=["freeflow:objective.balance=weighted"].'),
        ("e.g. --objectives meanflow,freeflow.", 'e.g. objectives=["meanflow", "freeflow"].'),
        ("Choose another --output, or --resume.", "Choose another output, or resume=True."),
        ("plus: --resume --output runs/a.b", 'plus: output="runs/a.b", resume=True'),
        ("--resume found no run", "resume=True found no run"),
        ("--budget says how long; raise --num 10 by --num N.", "budget says how long; raise num=10 by num=N."),
        ("Give --config FILE with one in it.", 'Give config_file="FILE" with one in it.'),
        ("`--format onnx` or `freeflow fetch x --force`", '`format="onnx"` or `freeflow fetch x --force`'),
        ("well-known -- and --", "well-known -- and --"),
    ],
)
def test_options_become_arguments(written, told):
    assert in_python(written) == told


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda: freeflow.distill(teacher="digits", objective="shortcut"), 'source="'),
        (lambda: freeflow.distill(teacher="digits", source="digits"), 'source="prior"'),
        (lambda: freeflow.distill(teacher="digits", resume=True, output="nowhere"), "resume=True"),
        (lambda: freeflow.distill(settings=["nonsense"]), 'settings=["nonsense"]'),
        (lambda: freeflow.compare(objectives=["freeflow"], settings_for=["x"]), 'settings_for=["x"]'),
        (lambda: freeflow.compare(objectives=["shortcut"], source="prior"), 'source="digits"'),
        (lambda: freeflow.evaluate(student="nowhere"), 'preset="NAME"'),
        (lambda: freeflow.check_teacher(), 'teacher="NAME"'),
    ],
)
def test_functions_advise_arguments(call, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        call()
    assert advice in str(caught.value)
    assert "--" not in re.sub("`[^`]*`", "", str(caught.value))
    assert "--" in caught.value.on_command_line


def test_what_was_told_once_stays(monkeypatch):
    @speaks_python
    @speaks_python
    def stopped():
        raise Interrupted("Go on with --resume.")

    with pytest.raises(Interrupted) as caught:
        stopped()
    assert (str(caught.value), caught.value.on_command_line) == ("Go on with resume=True.", "Go on with --resume.")


def test_the_stub_declares_what_the_package_offers():
    """Type checkers and editors read freeflow_core/__init__.pyi."""
    text = (typing.cast(str, freeflow.__file__)).removesuffix(".py") + ".pyi"
    with open(text, encoding="utf-8") as file:
        declared = {line.split()[-1] for line in file if line.startswith("from ")}
    assert declared == set(freeflow.__all__) - {"__version__"}
    assert declared <= set(api.__all__)

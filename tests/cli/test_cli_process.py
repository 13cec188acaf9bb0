"""What only a real process shows: imports, start-up time, entry points, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from weights_server import Answer, content

HEAVY = ("torch", "accelerate", "mlflow", "cleanfid", "torchdiffeq")


def freeflow(*arguments, path=None, **variables):
    return python("-m", "freeflow_cli", *arguments, path=path, **variables)


def python(*arguments, path=None, **variables):
    environment = os.environ | variables | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plugins", "list"],
        ["config", "show"],
        ["fetch", "--list"],
        ["sample", "--teacher", "nobody"],
        ["compare", "--preset", "mismatch", "--objectives", "nobody"],
    ],
)
def test_cli_start_imports_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['freeflow', *{arguments!r}]\n"
        "from freeflow_cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert python("-c", code).stdout.rstrip().endswith("heavy: []")


def test_cli_fetch_needs_nothing_heavy_either(tmp_path, weights_cache, server):
    url = server.serve("/one.pt", Answer(content()))
    (tmp_path / "mine.py").write_text(
        f"""
import atexit, sys
from freeflow_core.plugin import WeightFile, hookimpl
atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules]))
@hookimpl
def freeflow_weights():
    return [WeightFile("one", "", "one.pt", url={url!r})]
"""
    )
    path, heavy = freeflow("--plugin", str(tmp_path / "mine.py"), "fetch", "one").stdout.splitlines()
    assert (Path(path).read_bytes(), heavy) == (content(), "[]")


def test_cli_one_file_plugin_on_request(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from freeflow_core.plugin import hookimpl\n"
        "@hookimpl\n"
        "def freeflow_commands(app):\n"
        "    @app.command('mine')\n"
        "    def mine(): print('it ran')\n",
        "utf-8",
    )
    result = freeflow("mine", "--plugin", str(file))
    assert (result.returncode, result.stdout) == (0, "it ran\n")
    assert freeflow("mine").returncode == 2

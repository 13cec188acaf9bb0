"""The documentation tells the truth: every hook and option is there, every example runs, every command parses."""

import inspect
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main
import yaml
from freeflow_cli.main import DEBUG, TRUST, build_app, take_plugin_files

from freeflow_core import interfaces
from freeflow_core.config import load_run_config
from freeflow_core.plugin import Manager, Registry
from freeflow_core.plugin.spec import SPECIFICATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PLUGIN_PAGE = DOCS / "how-to" / "write-a-plugin.md"

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(freeflow [^`\n]+)`(?!`)")
_STARTS = ("freeflow ", "python -m freeflow_cli ")
_TORCHRUN = re.compile(r"^torchrun .*-m freeflow_cli ")
_ENVIRONMENT = re.compile(r"^(?:[A-Z_]+=\S+ )+")
_ENDS = {"|", "||", "&&", ";", ">", ">>", "2>", "&"}
_HELP = {"--help", "-h"}


def blocks(page, language):
    """Fenced blocks of a language by title; those without a title by number."""
    found = [m for m in _FENCE.finditer(page.read_text("utf-8")) if m[1] == language]
    return {title or str(number): text for number, (_, title, text) in enumerate(m.groups() for m in found)}


def command_lines(shown):
    """`freeflow ...` lines of the documentation: (page, line). ``shown``: in shell blocks; else mentioned inline."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if shown:
            shell = [m[3] for m in _FENCE.finditer(text) if m[1] in ("bash", "sh", "shell", "console")]
            lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
        else:
            lines = _INLINE.findall(_FENCE.sub("", text))
        for line in lines:
            stripped = _TORCHRUN.sub("freeflow ", _ENVIRONMENT.sub("", line.strip().removeprefix("$ ")))
            if stripped.startswith(_STARTS):
                yield str(page.relative_to(ROOT)), stripped


def arguments_of(line):
    """The arguments after `freeflow`, up to a pipe or redirection; an ellipsis is nobody's argument."""
    tokens = shlex.split(line, comments=True)
    tokens = tokens[3:] if tokens[0] == "python" else tokens[1:]
    end = next((i for i, token in enumerate(tokens) if token in _ENDS), len(tokens))
    return [token for token in tokens[:end] if token not in ("...", "…")]


@cache
def command_tree():
    return typer.main.get_command(build_app(Manager.load()))


def leaf_commands(command, path=("freeflow",)):
    """The root, then every command that does something."""
    children = getattr(command, "commands", {})
    if not children or len(path) == 1:
        yield path, command
    for name, child in children.items():
        yield from leaf_commands(child, (*path, name))


def find_command(arguments):
    """Path and object of the sub-command, and what follows it. Unknown commands and options fail an assertion."""
    arguments, _ = take_plugin_files(arguments)
    command, path = command_tree(), []
    rest = [argument for argument in arguments if argument not in (DEBUG, TRUST)]
    while rest and getattr(command, "commands", None) and not rest[0].startswith("-") and not rest[0].isupper():
        assert rest[0] in command.commands, f"no command {' '.join([*path, rest[0]])!r}"
        path.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | _HELP
    for token in rest:
        if re.match(r"--?[a-z]", token):
            assert token.split("=")[0] in known, f"{' '.join(path)}: no option {token}"
    return path, command, rest


def parse(arguments):
    """The sub-command and its parameters. Raises click's own errors for wrong or missing values."""
    path, command, rest = find_command(arguments)
    if getattr(command, "commands", None) or _HELP & set(rest):
        return path, {}
    return path, command.make_context(" ".join(path), rest).params


def nav_pages(node):
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from nav_pages(child)


def test_navigation_and_pages_agree():
    nav = set(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert nav == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        text = _FENCE.sub("", page.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_hook_is_documented_with_its_arguments():
    text = (DOCS / "reference" / "hooks.md").read_text("utf-8")
    for specification in SPECIFICATIONS:
        for name, function in inspect.getmembers(specification, inspect.isfunction):
            names = [argument for argument in inspect.signature(function).parameters if argument != "self"]
            assert f"`{name}({', '.join(names)})`" in text, f"{name}({', '.join(names)})"


def test_every_interface_is_documented():
    text = (DOCS / "reference" / "interfaces.md").read_text("utf-8")
    offered = {name: item for name, item in vars(interfaces).items() if not name.startswith("_")}
    for name, item in offered.items():
        module = item.__name__ if inspect.ismodule(item) else item.__module__
        assert f"::: {module}\n" in text, name


def test_every_command_and_option_is_documented_in_its_own_section():
    sections = re.split(r"^## ", (DOCS / "reference" / "cli.md").read_text("utf-8"), flags=re.MULTILINE)
    by_title = {section.split("\n", 1)[0].strip(): section for section in sections}
    commands = list(leaf_commands(command_tree()))
    assert len(commands) >= 9
    for path, command in commands:
        section = by_title[" ".join(path)]
        options = [name for p in command.params if p.param_type_name == "option" for name in p.opts]
        assert options or path[-1] == "doctor"
        assert set(re.findall(r"^\| `(--?[a-z-]+)", section, re.MULTILINE)) <= {*options, *_HELP}
        for name in {*options, "--help"}:
            assert re.search(rf"`{name}[ `]", section), f"{' '.join(path)} {name}"


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines(shown=True))), ids=lambda value: value[:80])
def test_every_command_line_parses_and_its_settings_exist(page, line, registry):
    path, values = parse(arguments_of(line))
    own = values.get("config") is not None or values.get("student") == Path("runs/my-run") or "--plugin" in line
    if path not in (["distill"], ["pretrain"], ["config", "show"], ["evaluate"]) or own:
        return
    command = "pretrain" if path == ["pretrain"] else values.get("command", "distill")
    kinds = ("teacher", "objective", "source", *(() if path == ["evaluate"] else ("student",)))
    overrides = {kind: {"name": values[kind]} for kind in kinds if values.get(kind)}
    load_run_config(
        registry,
        command,
        preset=values.get("preset") or "digits",
        overrides=overrides,
        assignments=values.get("assignments") or (),
    )


def test_every_command_mentioned_in_passing_exists():
    for page, line in command_lines(shown=False):
        head, *alternatives = line.split("|")
        for text in (head, *(f"{head.rsplit(' ', 1)[0]} {other}" for other in alternatives)):
            try:
                find_command(arguments_of(text))
            except AssertionError as error:
                raise AssertionError(f"{page}: {line!r}: {error}") from None


def write_blocks(page, folder):
    """All titled blocks of a page as files."""
    written = set()
    for language in ("python", "yaml", "toml"):
        for title, text in blocks(page, language).items():
            assert not title.isdigit() or language != "python", f"a Python example of {page.name} has no title"
            if not title.isdigit():
                (folder / title).parent.mkdir(parents=True, exist_ok=True)
                (folder / title).write_text(text, "utf-8")
                written.add(title)
    return written


def test_the_one_file_plugin_trains_and_reaches_its_teacher(tmp_path, monkeypatch):
    import torch

    from freeflow_core import api

    write_blocks(PLUGIN_PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    manager = Manager.load([Path("my_plugin.py")])
    config = api.resolve_config(
        "distill",
        config_file=Path("blob.yaml"),
        settings=["training.images=12800", "training.optimizer.learning_rate=3e-3", "training.ema.rampup_ratio=0.02"],
        manager=manager,
    )
    result = api.distill(config, output=Path("run"), manager=manager)
    assert result.status == "finished"
    drawn = api.sample(student=result.folder, num=512, output=Path("samples"), manager=manager).images
    assert torch.allclose(drawn.mean(0), torch.tensor([2.0, 0.0]), atol=0.1)  # the teacher's mean
    assert torch.allclose(
        drawn.std(0), torch.full((2,), 0.5), atol=0.15
    )  # its spread; 8 Euler steps overshoot a little


@pytest.mark.parametrize("script", ["run_my_plugin.py", "check_exact.py"])
def test_the_scripts_of_the_plugin_page_run(tmp_path, script):
    assert script in write_blocks(PLUGIN_PAGE, tmp_path)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_is_found_by_its_entry_point_and_trains(tmp_path, install):
    from freeflow_core import api

    written = write_blocks(PLUGIN_PAGE, tmp_path)
    (tmp_path / "my_flow" / "__init__.py").touch()
    install(tmp_path / "pyproject.toml")
    for name in ("plugin", "config"):
        assert "torch" not in (tmp_path / "my_flow" / f"{name}.py").read_text("utf-8")
    assert {"my_flow/plugin.py", "my_flow/config.py", "my_flow/teacher.py"} <= written
    manager = Manager.load()
    try:
        assert Registry(manager).origin("teacher", "point").distribution == "my-flow"
        config = api.resolve_config(
            "distill",
            preset="digits",
            overrides={"teacher": {"name": "point"}, "student": {"name": "mlp"}, "reference": None, "trackers": []},
            settings=["training.images=128", "evaluation.enabled=false", "runtime.threads=1"],
            manager=manager,
        )
        assert api.distill(config, output=tmp_path / "run", manager=manager).status == "finished"
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "my_flow"]:
            del sys.modules[name]


def test_the_observer_of_the_hooks_page_runs(tmp_path):
    from freeflow_core import api

    observer, toy = tmp_path / "stopwatch.py", tmp_path / "toy.yaml"
    observer.write_text(blocks(DOCS / "reference" / "hooks.md", "python")["stopwatch.py"], "utf-8")
    toy.write_text(blocks(DOCS / "how-to" / "many-processes.md", "yaml")["toy.yaml"], "utf-8")
    manager = Manager.load([observer])
    settings = ["training.images=128", "runtime.threads=1"]
    config = api.resolve_config("distill", config_file=toy, settings=settings, manager=manager)
    result = api.distill(config, output=tmp_path / "run", manager=manager)
    assert (result.folder / "stopwatch.txt").read_text("utf-8").startswith("finished after ")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_every_titled_configuration_is_valid(page, registry, tmp_path):
    for title, text in blocks(page, "yaml").items():
        values = yaml.safe_load(text)
        if title.isdigit():
            load_run_config(registry, "distill", preset="digits", overrides=values)
        elif title not in ("blob.yaml", "bootstrap.yaml"):  # they need the plugin of their page, and are run with it
            file = tmp_path / title
            file.write_text(text, "utf-8")
            load_run_config(registry, "distill", file=file)


def test_the_interfaces_in_short_are_those_of_the_code():
    page = (DOCS / "reference" / "interfaces.md").read_text("utf-8")
    (short,) = [m[3] for m in _FENCE.finditer(page) if m[1] == "text"]
    owner, told = None, set()
    for line in short.splitlines():
        found = re.match(r" {4}(\w+)\((.*?)\)", line)
        if found is None:
            owner = getattr(interfaces, re.match(r"\w+", line)[0])
            continue
        classes = (owner, interfaces.AverageVelocityStudent, interfaces.ObjectiveInParts)
        method = next(getattr(c, found[1]) for c in classes if issubclass(c, owner) and hasattr(c, found[1]))
        names = [name for name in inspect.signature(method).parameters if name != "self"]
        assert found[2].split(", ") == names or (found[2], names) == ("", []), line
        told.add((owner.__name__, found[1]))
    for kind in ("Teacher", "AverageVelocityStudent", "Objective", "Sampler"):
        owned = kind.removeprefix("AverageVelocity")
        missing = {(owned, name) for name in getattr(interfaces, kind).__abstractmethods__} - told
        assert not missing


@pytest.mark.parametrize("asked", ["sharding", "activation_checkpointing", "runtime.sharding", "0.1.0"])
def test_the_search_finds_options_by_their_own_names(asked):
    site = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    separator = re.search(r"separator: '(.*)'", site)[1]
    text = "`runtime.sharding=full` or runtime.activation_checkpointing, since 0.1.0"
    assert set(re.split(separator, asked)) <= set(re.split(separator, text.replace("`", " ")))

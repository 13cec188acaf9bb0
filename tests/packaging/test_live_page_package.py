"""The example package, installed as pip would, is found by its entry point and watches a run of the command line."""

from pathlib import Path

from run_helpers import freeflow, sets

from freeflow_core.plugin import Manager

EXAMPLE = Path(__file__).parents[2] / "examples" / "live-page"


def test_the_installed_example_leaves_a_page_of_a_digits_run(tmp_path, monkeypatch, install):
    project = install(EXAMPLE / "pyproject.toml")
    monkeypatch.chdir(tmp_path)

    manager = Manager.load()
    assert [plugin.version for plugin in manager.plugins if plugin.name == "live-page"] == [project["version"]]
    settings = ("training.images=128", "evaluation.enabled=false", "samples.every_images=64", "trackers=[]")
    freeflow("distill", "--preset", "digits", *sets(*settings), manager=manager)
    page = (tmp_path / "runs" / "digits-freeflow" / "live.html").read_text("utf-8")
    assert ">finished<" in page
    assert 'src="data:image/png;base64,' in page
    assert "digits-freeflow" in page

    monkeypatch.setenv("FREEFLOW_DISABLED_PLUGINS", "live-page")
    assert not any(plugin.loaded for plugin in Manager.load().plugins if plugin.name == "live-page")

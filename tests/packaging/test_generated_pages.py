"""The reference pages that the site makes from the program leave nothing out."""

import html
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.plugin import KINDS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generated(site_module):
    return site_module("_generated")


def settings(model, prefix=""):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, ComponentChoice):
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_of_a_run_is_on_the_page_with_its_meaning(generated):
    page = generated.configuration()
    for name in settings(RunConfig):
        assert f"| `{name}` |" in page, name
    assert RunConfig.model_fields["seed"].description in page
    assert "| `training.batch_size` | `64` | int, > 0 |" in page


def test_every_component_and_option_is_on_the_page(generated, registry):
    for kind in KINDS:
        page = html.unescape(generated.components(kind).replace("\\[", "["))  # [ would begin a link
        for name, component in registry.components(kind).items():
            if registry.origin(kind, name).distribution == "freeflow-distill":
                section = page.split(f"### {name}\n")[1].split("\n###")[0]
                assert component.about()[0].split(",")[0].split("|")[0].rstrip(".") in section
                for option in component.load_config_class().model_fields:
                    assert f"| `{option}" in section, f"{kind} {name}: {option}"


def test_a_table_cell_survives_markdown(generated):
    assert generated._cell("a | b < c\nd") == "a \\| b &lt; c d"
    assert generated._cell("`x < 1`") == "`x < 1`"


def test_the_pages_ask_for_what_is_generated():
    asked = [found for page in DOCS.rglob("*.md") for found in re.findall("<!-- generated: (.+) -->", page.read_text())]
    assert sorted(asked) == sorted(["commands", "configuration", *(f"components {kind}" for kind in KINDS)])

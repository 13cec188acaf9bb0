"""What the site does to its pages: generated reference pages, notebooks as pages, and Sphinx roles as plain code.

A page asks for what is made while the site is built with a comment: ``<!-- generated: commands -->`` (or
``configuration``, ``components KIND``), ``<!-- notebook: NAME -->``.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

import _generated
import _notebooks

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(?=<code>|`)")
_GENERATED = re.compile(r"<!-- generated: (\w+)(?: (\w+))? -->")
_NOTEBOOK = re.compile(r"<!-- notebook: ([\w-]+) -->")
MAKERS = {
    "commands": _generated.commands,
    "configuration": _generated.configuration,
    "components": _generated.components,
}


def on_files(files: Any, config: Any) -> Any:
    """Put a notebook's pictures beside the page that shows it."""
    for page in files.documentation_pages():
        for name in _NOTEBOOK.findall(Path(page.abs_src_path).read_text("utf-8")):
            pictures = _notebooks.to_markdown(_notebooks.read(_notebooks.NOTEBOOKS / f"{name}.ipynb"), name)[1]
            folder = Path(page.src_uri).parent
            for file, data in pictures.items():
                files.append(File.generated(config, (folder / file).as_posix(), content=data))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page asks for."""
    markdown = _GENERATED.sub(lambda found: MAKERS[found[1]](*filter(None, [found[2]])), markdown)
    return _NOTEBOOK.sub(
        lambda found: _notebooks.to_markdown(_notebooks.read(_notebooks.NOTEBOOKS / f"{found[1]}.ipynb"), found[1])[0],
        markdown,
    )


def on_page_content(html: str, **_: Any) -> str:
    """Drop a role's name and keep its code."""
    return _ROLE.sub("", html)

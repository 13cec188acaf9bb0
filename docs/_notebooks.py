"""Notebooks of the site: executed by ``just notebook`` and by a test, shown as pages by ``_hooks.py``.

``python docs/_notebooks.py`` executes them with their full budgets and writes them back, with the figures that pages of
the site show beside them (cells whose metadata has a ``figure``).
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS / "notebooks"
_BAR = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, timeout: int = 600) -> Any:
    """The notebook, executed from first to last, without traces of the machine. Raises ``CellExecutionError``."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # what it writes
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # warnings name this machine's folders; bars are nothing to keep
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and _BAR not in o.get("data", {})]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def outputs(cell: dict[str, Any], kind: str) -> list[str]:
    """What a cell has put out: ``text/html``, ``text/plain`` (printed lines too) or ``image/png`` (in base64).

    What a picture or a table says as text is left out.
    """
    found = []
    for output in cell.get("outputs", []):
        text = output.get("text") if output["output_type"] == "stream" else None
        if text is None and kind == "text/plain" and output.get("data", {}).keys() & {"image/png", "text/html"}:
            continue
        value = text if kind == "text/plain" and text is not None else output.get("data", {}).get(kind)
        if value is not None:
            found.append("".join(value))
    return found


def figures(notebook: dict[str, Any]) -> dict[str, bytes]:
    """Pictures by the name that their cell gives them."""
    named = [(cell["metadata"].get("figure"), outputs(cell, "image/png")) for cell in notebook["cells"]]
    return {name: base64.b64decode(pictures[0]) for name, pictures in named if name and pictures}


def to_markdown(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as a page's Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [f"```text\n{text.rstrip()}\n```" for text in outputs(cell, "text/plain")]
        parts += [re.sub(r"\n?<img [^>]*>", "", text) for text in outputs(cell, "text/html")]
        for data in outputs(cell, "image/png"):
            name = f"{stem}-{len(pictures) + 1}.png"
            pictures[name] = base64.b64decode(data)
            parts.append(f"![{cell['metadata'].get('figure', name)}]({name})")
    return "\n\n".join(parts) + "\n", pictures


def read(path: Path) -> dict[str, Any]:
    """A notebook as it lies on the disk."""
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return notebook


def main() -> None:
    """Execute every notebook and keep what it shows."""
    import nbformat

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(path)
        nbformat.write(notebook, path)
        for name, picture in figures(notebook).items():
            (DOCS / "images" / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()

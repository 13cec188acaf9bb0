"""``freeflow view``: a run in the browser."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import print_line
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


def view(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Of a run, of a comparison, or one that holds some.")] = Path("runs"),
    host: Annotated[str, options.value("ADDRESS", "Who may look: 0.0.0.0 is everybody who reaches it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Show runs as a page: curves, pictures, scores, settings, and the student on demand. Ends with Ctrl-C."""
    if not run.is_dir():
        raise ConfigError(f"Expected the folder of a run; {run} is not a folder.")
    from freeflow_cli.view.server import Gallery, make_server

    server = make_server(Gallery(run, Session.of(context).manager), host, port)
    address = f"http://{host}:{server.server_address[1]}/"
    print_line(f"{run} is at {address} until Ctrl-C.")
    if browser and sys.stdout.isatty():
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()

"""Errors a user can act on: what was expected, what came, what to do."""

import difflib
from collections.abc import Iterable


class FreeflowError(Exception):
    """A failure the user can do something about. The command line prints it without a traceback.

    ``exit_code`` is 1 for failures and 2 for usage errors.
    """

    exit_code = 1


class ConfigError(FreeflowError):
    """A configuration value, name or combination that cannot be used."""

    exit_code = 2


class PluginError(FreeflowError):
    """A plugin that breaks the rules of the registry or of an interface."""


class CheckpointError(FreeflowError):
    """A checkpoint that is missing, incomplete, or does not fit the network."""


class DownloadError(FreeflowError):
    """Published weights that cannot be fetched, or are not what their publisher describes."""


class NonFiniteError(FreeflowError):
    """Training produced NaN or infinity; the step was not applied."""


class UnknownComponent(ConfigError):
    """A ``name`` that no plugin registered under this kind; ``listed_by`` is the command that shows all of them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listed_by: str = "freeflow plugins list") -> None:
        self.name = name
        known = sorted(known)
        super().__init__(
            f"Unknown {kind} {name!r}.{suggest(name, known)} "
            f"Known: {', '.join(known) or 'none'}. `{listed_by}` shows all of them."
        )


class Interrupted(FreeflowError):
    """The user or the system stopped a run or a download; what was done so far was kept.

    ``exit_code`` is that of a temporary failure (``EX_TEMPFAIL``), so that a scheduler can start the command again.
    """

    exit_code = 75


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""

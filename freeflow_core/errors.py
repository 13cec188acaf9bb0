"""Errors a user can act on: what was expected, what came, what to do."""

import re
from collections.abc import Iterable


class FreeflowError(Exception):
    """A failure the user can do something about. The command line prints it without a traceback.

    Messages name options as the command line does, e.g. ``--set a.b=c``; ``freeflow_core``'s functions tell them in
    Python's words, and keep what the command line would print in ``on_command_line``.

    ``exit_code`` is 1 for failures and 2 for usage errors.
    """

    exit_code = 1
    on_command_line: str | None = None


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


_TOO_LARGE = re.compile("allocate memory|[Ss]torage size calculation overflowed|numel: integer multiplication overflow")
"""What torch says of tensors that no machine holds."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its GPU had no more memory to give."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or bool(_TOO_LARGE.search(" ".join(str(error).split())))


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name, or an empty string."""
    found = min(((_edits(name.lower(), each.lower()), each) for each in known), default=None)
    if found is None or found[0] > max(1, max(len(name), len(found[1])) // 2):
        return ""
    return f" Did you mean {found[1]!r}?"


def _edits(first: str, second: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment)."""
    rows = [list(range(len(second) + 1))]
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, b) == (second[j - 2], first[i - 2]):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]

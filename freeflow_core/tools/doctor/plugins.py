"""Each plugin, and whether everything that it offers can be imported."""

from __future__ import annotations

from collections import Counter

from freeflow_core.engine.build import INTERFACES
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import KINDS, Component, Manager, Registry
from freeflow_core.plugin.manager import api_version
from freeflow_core.types import Check


def check_plugins(manager: Manager) -> list[Check]:
    """The API's version, each plugin, and each component that cannot be used."""
    registry = Registry(manager)  # first: a hook that fails is found here
    broken: list[Check] = []
    sound: Counter[str] = Counter()
    for kind in KINDS:
        for name, component in registry.components(kind).items():
            owner = registry.origin(kind, name).name
            reason = _why_broken(kind, component)
            sound[owner] += reason is None
            if reason is not None:
                broken.append(Check(f"{kind} {name}", "error", f"of plugin {owner}: {reason}"))
    checks = [
        Check("plugin API", "ok", f"version {api_version()}"),
        *(Check("plugins", "warning", text) for text in (*manager.warnings, *registry.warnings)),
    ]
    for plugin in manager.plugins:
        what = f"{f'{plugin.distribution} {plugin.version}'.strip()}, for plugin API {plugin.api}"
        checks.append(
            Check(
                f"plugin {plugin.name}",
                "error" if plugin in manager.problems else "warning" if plugin.problem else "ok",
                plugin.problem or f"{what}; {_number(sound[plugin.name])}",
            )
        )
    return checks + broken


def _number(components: int) -> str:
    return "its component can be imported" if components == 1 else f"its {components} components can be imported"


def _why_broken(kind: str, component: Component) -> str | None:
    try:
        component.load_config_class()
        target = component.load_target()
    except FreeflowError as error:
        return str(error)
    except Exception as error:  # a module may fail in any way
        return f"{component.target} fails to import: {type(error).__name__}: {' '.join(str(error).split())}"
    expected = INTERFACES[kind]
    if not (isinstance(target, type) and issubclass(target, expected)):
        return f"{component.target} is no freeflow_core.interfaces.{expected.__name__}"
    return None

"""All checks, and those of the plugins: whether everything that they offer can be imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from freeflow_core.engine.build import INTERFACES
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import KINDS, Component, Manager, Registry
from freeflow_core.plugin.manager import api_version
from freeflow_core.tools.doctor.environment import check_launch, check_versions
from freeflow_core.tools.doctor.hardware import check_attention, check_hardware
from freeflow_core.tools.doctor.stores import check_storage, check_tracking
from freeflow_core.types import Check


def diagnose(manager: Manager) -> list[Check]:
    """All checks; each stands for itself, and one that fails in a way of its own is a finding like others."""
    parts: dict[str, Callable[[], Iterable[Check]]] = {
        "versions": check_versions,
        "device": check_hardware,
        "attention": check_attention,
        "distributed launch": check_launch,
        "storage": check_storage,
        "MLflow": lambda: [check_tracking()],
        "plugins": lambda: check_plugins(manager),
    }
    found: list[Check] = []
    for name, part in parts.items():
        try:
            found.extend(part())
        except Exception as error:  # the other checks still help
            reason = " ".join(str(error).split())
            found.append(Check(name, "error", f"could not be looked at: {type(error).__name__}: {reason}"))
    return found


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
        number = sound[plugin.name]
        offers = "its component can be imported" if number == 1 else f"its {number} components can be imported"
        what = f"{plugin.distribution} {plugin.version}".strip()
        checks.append(
            Check(
                f"plugin {plugin.name}",
                "error" if plugin in manager.problems else "warning" if plugin.problem else "ok",
                plugin.problem or f"{what}, for plugin API {plugin.api}; {offers}",
            )
        )
    return checks + broken


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

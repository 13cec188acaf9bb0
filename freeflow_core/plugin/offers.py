"""Who keeps a name that several plugins offer, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin.component import Component, Preset, WeightFile
from freeflow_core.plugin.manager import DISABLED_VARIABLE, OWN_DISTRIBUTION, LoadedPlugin

Item = TypeVar("Item", Component, Preset, WeightFile)


@dataclass
class Offers(Generic[Item]):
    """What is offered under one kind.

    Attributes:
        kind: of what is offered, in words.
        taken: by name, each with its plugin.
        contested: names that no plugin has, because several offer them; and what to say when one is asked for.
        warnings: one line for everything that was left out.
    """

    kind: str
    taken: dict[str, tuple[LoadedPlugin, Item]] = field(default_factory=dict)
    contested: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def items(self) -> Mapping[str, Item]:
        """What can be had, in order of name."""
        return MappingProxyType({name: item for name, (_, item) in sorted(self.taken.items())})

    def find(self, name: str, listed_by: str = "freeflow plugins list") -> tuple[LoadedPlugin, Item]:
        """An item and its plugin.

        Raises:
            UnknownComponent: nobody offers it; with a suggestion. ``listed_by`` is the command that shows all.
            PluginError: several plugins offer it, so that nobody has it.
        """
        if name in self.contested:
            raise PluginError(self.contested[name])
        if name not in self.taken:
            raise UnknownComponent(self.kind, name, self.taken, listed_by)
        return self.taken[name]


def settle(kind: str, found: Iterable[tuple[LoadedPlugin, Any]], expected: type[Item]) -> Offers[Item]:
    """Take what is offered once; leave out what is no ``expected``, and let nobody win a contested name silently.

    A built-in plugin keeps its names. Between two others neither has the name: which of them was meant is not ours to
    guess.

    Args:
        kind: of component, in words, for the lines.
        found: pairs of plugin and what its hook returned, in order of the plugins' names.
    """
    offers: Offers[Item] = Offers(kind)
    by_name: dict[str, list[tuple[LoadedPlugin, Item]]] = {}
    for plugin, item in found:
        if isinstance(item, expected):
            by_name.setdefault(item.name, []).append((plugin, item))
        else:
            shown = repr(item) if len(repr(item)) < 80 else f"a {type(item).__name__}"
            offers.warnings.append(
                f"plugin {plugin} returned {shown} among its {kind}s; expected a {expected.__name__}. It is left out."
            )
    for name, claims in by_name.items():
        _settle_name(offers, name, claims)
    return offers


def _settle_name(offers: Offers[Item], name: str, claims: list[tuple[LoadedPlugin, Item]]) -> None:
    first = next((claim for claim in claims if claim[0].distribution == OWN_DISTRIBUTION), claims[0])
    others = [claim[0] for claim in claims if claim is not first]
    if first[0].distribution == OWN_DISTRIBUTION or all(plugin == first[0] for plugin in others):
        offers.taken[name] = first
        for plugin in others:
            why = "it offers two" if plugin == first[0] else f"plugin {first[0]} has it, and built-in names stay"
            offers.warnings.append(f"plugin {plugin}: its {offers.kind} {name!r} is left out: {why}. Rename it.")
        return
    names = dict.fromkeys(str(plugin) for plugin, _ in claims)
    offers.contested[name] = (
        f"The {offers.kind} {name!r} is offered by the plugins {' and '.join(names)}, so neither is used. Uninstall "
        f"one, or disable it, e.g. {DISABLED_VARIABLE}={claims[-1][0].name}."
    )
    offers.warnings.append(offers.contested[name])

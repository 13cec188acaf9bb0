"""What every kind of component is checked for, and the words in which a check fails."""

import contextlib
import copy
import functools
import math
import time
import unittest
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar

import torch
import yaml
from torch import Tensor

from freeflow_core.config import ComponentChoice, ComponentConfig
from freeflow_core.config.load import resolve_choice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError, FreeflowError, suggest
from freeflow_core.interfaces import Teacher
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin import Manager, Registry
from freeflow_core.plugin.culprit import described, place
from freeflow_core.types import Condition, describe
from freeflow_core.weights import WeightStore

SEED = 20
Choice: TypeAlias = tuple[str, Mapping[str, Any]]
"""Name and options of a component."""
TEACHERS: Sequence[Choice] = (("gaussian-mixture", {"num_modes": 4, "num_classes": 2, "std": 0.3}), ("digits", {}))
"""Small teachers that come with freeflow, tried in order where a contract names none."""
ChoiceT = TypeVar("ChoiceT", Choice, Choice | None)
_T = TypeVar("_T")


class ContractFailure(AssertionError):
    """A component that breaks its contract: which one, what was expected, what came."""


class ComponentContract:
    """Base of the contracts: subclass the one of your kind as ``Test...`` and pytest finds its checks.

    Attributes:
        component: the name under which it is registered.
        options: its options, as a configuration file would give them.
        plugin: a one-file plugin that registers it; None: an installed plugin does.
        registry: where components are looked up; None: what is installed, and ``plugin``.
        waived: reasons why checks, named in words, are not to be run: they are skipped and say so.
        kind: of the component; each contract sets it.
    """

    kind: ClassVar[str]
    component: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    plugin: ClassVar[Path | str | None] = None
    registry: ClassVar[Registry | None] = None
    waived: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        known = {_words(name): name for name in check_names(cls)} if cls.waived else {}
        for check, reason in cls.waived.items():
            if check not in known:
                raise ConfigError(f"There is no check {check!r} to waive.{suggest(check, known)}")
            if not reason.strip():
                raise ConfigError(f"The waiver of {check!r} says no reason.")
            setattr(cls, known[check], _waiver(reason))

    def test_builds_from_its_configuration(self) -> None:
        self.build()

    def test_configuration_survives_a_file(self) -> None:
        config = self.config()
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        again = type(config).model_validate(yaml.safe_load(text))
        advice = "Use types that pydantic writes and reads: numbers, strings, enums, tuples, paths."
        expected = "options that read back from YAML as they were"
        self.expect(again == config, expected, f"{again!r} from {config!r}", advice)

    def test_configuration_refuses_unknown_options(self) -> None:
        choice = choose(self.component, {**self.options, "no_such_option": 1})
        advice = "Derive the configuration class from freeflow_core.config.ComponentConfig, which forbids extra fields."
        ask = functools.partial(resolve_choice, self._registry(), self.kind, choice, self.kind)
        self.expect_refused(ask, "an option 'no_such_option'", advice)

    def test_every_option_is_described(self) -> None:
        model = self._registry().component(self.kind, self.component).load_config_class()
        bare = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
        advice = "Write Field(default, description=...), or a docstring below the option."
        self.expect(not bare, "a description of every option", f"none of {', '.join(bare)}", advice)

    def expect(self, holds: bool, expected: str, came: str, advice: str = "") -> None:
        """Fail unless ``holds``: what was expected, what came, and what to do."""
        if not holds:
            self.fail(expected, came, advice)

    def expect_close(self, found: Tensor, expected: Tensor, limit: float, what: str, advice: str = "") -> None:
        """Fail unless ||found - expected|| < limit ||expected||."""
        error = relative_difference(found, expected)
        self.expect(error < limit, what, f"a relative difference of {error:.2g}", advice)

    def expect_tensor(self, found: object, shape: Sequence[int], what: str, dtype: torch.dtype | None = None) -> None:
        """Fail unless ``found`` is a finite tensor of this shape, and of ``dtype`` where one is named."""
        good = isinstance(found, Tensor) and tuple(found.shape) == tuple(shape) and dtype in (None, found.dtype)
        self.expect(good, f"{what} of shape {tuple(shape)}{f' and {dtype}' if dtype else ''}", describe(found))
        assert isinstance(found, Tensor)
        bad = int((~torch.isfinite(found)).sum())
        self.expect(bad == 0, f"finite {what}", f"NaN or infinity in {bad} of {found.numel()} numbers")

    def expect_labels(self, labels: object, num_classes: int, rows: int, what: str, advice: str = "") -> None:
        """Fail unless ``labels`` are (rows,) int64 from 0 to ``num_classes - 1``."""
        good = isinstance(labels, Tensor) and labels.dtype is torch.int64 and labels.shape == (rows,)
        self.expect(good, f"{rows} int64 labels from {what}", describe(labels), advice)
        assert isinstance(labels, Tensor)
        low, high = int(labels.min()), int(labels.max())
        expected = f"labels from 0 to {num_classes - 1} from {what}"
        self.expect(low >= 0 and high < num_classes, expected, f"labels from {low} to {high}", advice)

    def expect_refused(self, ask: Callable[[], object], what: str, advice: str) -> None:
        """Fail unless ``ask`` raises a ``ConfigError`` or ``ValueError``."""
        with contextlib.suppress(ConfigError, ValueError):
            ask()
            self.fail(f"a ConfigError for {what}", "none", advice)

    @contextlib.contextmanager
    def expect_untouched(self, *values: Any) -> Iterator[None]:
        """Fail when the block writes to the tensors among ``values``."""
        kept = copy.deepcopy(values)
        yield
        self.expect(same(kept, values), "its arguments as they were", "changed ones", "Use no in-place operations.")

    def expect_repeatable(self, ask: Callable[[], _T], what: str, advice: str = "") -> _T:
        """Fail unless ``ask`` gives the same twice, without torch's global generator; its first answer."""
        before = torch.get_rng_state()
        first, second = ask(), ask()
        used = not torch.equal(before, torch.get_rng_state())
        came = "torch's global random numbers drawn" if used else "another answer the second time"
        advice = advice or "Take every random number from draws: draws.noise('name', shape), draws.uniform('name')."
        self.expect(same(first, second) and not used, f"the same from {what} for the same input", came, advice)
        return first

    def fail(self, expected: str, came: str, advice: str = "") -> NoReturn:
        text = f"The {self.kind} {self.component!r}: expected {expected}; got {came}."
        raise ContractFailure(f"{text} {advice}".rstrip())

    def skip(self, reason: str) -> NoReturn:
        """End a check that has nothing to look at here."""
        raise unittest.SkipTest(reason)

    def config(self) -> ComponentConfig:
        choice = resolve_choice(self._registry(), self.kind, self._choice(), self.kind)
        assert isinstance(choice.options, ComponentConfig)
        return choice.options

    def build(self, device: str = "cpu", teacher: Teacher | None = None) -> Any:
        return self.builder(device).build(self.kind, self._choice(), teacher=teacher)

    def builder(self, device: str = "cpu", precision: str = "float32") -> Builder:
        """Builds components without downloading anything."""
        registry = self._registry()
        return Builder(registry, torch.device(device), SEED, precision, weights=_cached_weights(registry))

    def _choice(self) -> ComponentChoice:
        return choose(self.component, self.options)

    def _registry(self) -> Registry:
        if not self.component:
            raise FreeflowError(
                f"{type(self).__name__} does not say what to check. Set `component` to the name under which the "
                f"{self.kind} is registered."
            )
        if self.registry is not None:
            return self.registry
        return _load_registry(None if self.plugin is None else Path(self.plugin))


@functools.cache
def _load_registry(plugin: Path | None) -> Registry:
    return Registry(Manager.load(() if plugin is None else (plugin,)))


def _cached_weights(registry: Registry) -> Callable[[str], Path]:
    def weights(name: str) -> Path:
        found = WeightStore().find(registry.weight(name))
        if found is None:
            raise unittest.SkipTest(f"the published weights {name!r} are not here; get them with freeflow fetch {name}")
        return found

    return weights


class WithTeacher(ComponentContract):
    """A contract whose component lives beside a teacher.

    Attributes:
        teacher: name of the teacher that stands beside it; None: the first of freeflow's own that fits.
        teacher_options: that teacher's options.
    """

    teacher: ClassVar[str | None] = None
    teacher_options: ClassVar[Mapping[str, Any]] = {}

    def teachers(self) -> Sequence[Choice]:
        return TEACHERS if self.teacher is None else ((self.teacher, self.teacher_options),)

    def first_that_fits(self, choices: Iterable[ChoiceT], make: Callable[[ChoiceT], _T]) -> _T:
        """What ``make`` gives for the first choice that it does not refuse; else its first refusal."""
        refusals: list[FreeflowError] = []
        for choice in choices:
            try:
                return make(choice)
            except FreeflowError as error:
                refusals.append(error)
        raise refusals[0]

    def build_teacher(self, choice: Choice, device: str = "cpu") -> Teacher:
        return self.builder(device).teacher(choose(*choice)).float()


def choose(name: str, options: Mapping[str, Any] | None = None) -> ComponentChoice:
    """A component by name with its options, as a builder takes it."""
    return ComponentChoice(name=name, options=dict(options or {}))


def draws_of(
    rows: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 5, first: int = 0
) -> PhiloxDraws:
    """Draws of ``rows`` samples from number ``first`` on."""
    return PhiloxDraws(seed, torch.arange(first, first + rows), device=device, dtype=dtype)


def count_rows(teacher: Teacher, counted: list[int]) -> None:
    """Append the rows of each call of ``velocity`` from now on."""
    velocity = teacher.velocity

    def counting(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        counted.append(len(x_t))
        return velocity(x_t, t, condition)

    vars(teacher)["velocity"] = counting  # shadows the method


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; infinity where shapes differ or a number is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return math.inf
    size = float(expected.detach().double().norm())
    return float((found.detach().double() - expected.detach().double()).norm()) / max(size, 1e-12)


def same(first: Any, second: Any) -> bool:
    """Whether two tensors, or dictionaries, tuples and lists of them, hold the same values."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@dataclass(frozen=True)
class CheckResult:
    """One check: its name in words, how it ended, and the reason of a failure or a skip."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    message: str = ""
    seconds: float = 0.0


def check_names(contract: type[ComponentContract]) -> list[str]:
    """Methods that are checks, base class first, in the order they are written."""
    found: dict[str, None] = {}
    for base in reversed(contract.__mro__):
        found |= {name: None for name in vars(base) if name.startswith("test_")}
    return [name for name in found if callable(getattr(contract, name, None))]


def run_contract(
    contract: type[ComponentContract],
    *,
    component: str,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    only: Collection[str] | None = None,
    **attributes: Any,
) -> Iterator[CheckResult]:
    """Run all checks of a contract on one component, each on an object built anew.

    When it cannot be built at all, the checks that need it are skipped.

    Args:
        only: names of the checks to run; None: all.
        attributes: class attributes of the contract to set, such as ``teacher`` of a student's.
    """
    values = {"component": component, "options": dict(options or {}), "registry": registry, **attributes}
    own: type[ComponentContract] = type(contract.__name__, (contract,), values)
    names = [name for name in check_names(own) if only is None or name in only]
    builds = ComponentContract.test_builds_from_its_configuration.__name__
    names.sort(key=lambda name: name != builds)  # stable: the others keep their order
    built = True
    for name in names:
        if not built and not name.startswith("test_configuration") and name != "test_every_option_is_described":
            yield CheckResult(_words(name), "skipped", "it could not be built")
            continue
        result = _run(own, name)
        built = built and not (name == builds and result.status != "ok")
        yield result


def _run(contract: type[ComponentContract], name: str) -> CheckResult:
    began = time.perf_counter()
    status: Literal["ok", "failed", "skipped"] = "ok"
    message = ""
    try:
        check: Callable[[], None] = getattr(contract(), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except unittest.SkipTest as reason:
        status, message = "skipped", str(reason)
    except (ContractFailure, FreeflowError) as error:
        status, message = "failed", str(error)
        if repr(contract.component) not in message:
            message = f"The {contract.kind} {contract.component!r}: {message}"
    except Exception as error:
        where = place(error, _packages(contract))
        problem = f"{described(error)}{f' ({where})' if where else ''}"
        status, message = "failed", f"The {contract.kind} {contract.component!r} raised {problem}"
    return CheckResult(_words(name), status, message, time.perf_counter() - began)


def _waiver(reason: str) -> Callable[[ComponentContract], None]:
    def waived(contract: ComponentContract) -> None:
        contract.skip(f"waived: {reason}")

    return waived


def _packages(contract: type[ComponentContract]) -> set[str]:
    """Where the component's code lies."""
    target = contract()._registry().component(contract.kind, contract.component).target
    return {target.partition(":")[0].partition(".")[0]}


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")

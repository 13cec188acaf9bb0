"""Where a network takes in its time: found by following the time through one forward pass."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freeflow_core.errors import ConfigError

STATE, TIME = "state", "time"
_Marks: TypeAlias = frozenset[str | int]
_NONE: _Marks = frozenset()


@dataclass(frozen=True)
class Place:
    """A module of a network to whose output (N, ..., ``width``, ...) numbers of each row are added.

    ``dim`` of the output holds the ``width`` channels.
    """

    path: str
    width: int
    dim: int

    def add(self, output: Tensor, values: Tensor) -> Tensor:
        """``values`` (N, width) added to ``output``, the same everywhere along its other dimensions."""
        shape = [1] * output.ndim
        shape[0], shape[self.dim] = values.shape
        return output + values.to(output.dtype).reshape(shape)


@dataclass(frozen=True)
class TimePath:
    """What one forward pass tells.

    Args:
        places: where what is added reaches the answer as the time does.
        reached: names of the network's parameters that the answer depends on by a gradient.
    """

    places: tuple[Place, ...]
    reached: frozenset[str]


def follow_time(
    network: nn.Module,
    ask: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    named: Sequence[str] = (),
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> TimePath:
    """The places in ``network`` where a second time belongs.

    Every operation of one pass is watched, and every module's output that depends on the time but not on the state is
    noted. The last of them through which all others lead to the answer is the output of the time embedding; where the
    network embeds the time several times over, they are all those that the answer takes directly; where nothing but
    the bare time meets the state, the output of the module in which it first does.

    Args:
        ask: calls the network, at states ``x`` (N, *D) and times ``t`` (N,), with gradient.
        named: paths to use rather than those found.
        parameters: those whose names ``reached`` may hold; None: the network's.

    Raises:
        ConfigError: a path that is no module, or one without a suitable output; a network in which nothing is found.
    """
    for path in named:
        _submodule(network, path)
    watch = _Watch(len(x))
    with ExitStack() as stack:
        for path, module in network.named_modules():
            handle = module.register_forward_hook(watch.leaving(path, module), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        with watch:
            watch.mark(x, frozenset({STATE}))
            watch.mark(t, frozenset({TIME}))
            answer = ask(x, t)
    parameters = dict(network.named_parameters()) if parameters is None else parameters
    reached = _reached(answer, parameters)
    return TimePath(_named(watch, named) if named else _found(watch, answer), reached)


@dataclass(frozen=True)
class _Exit:
    """A module that returned a tensor with a row for each sample (or None: another output), and what that came from."""

    path: str
    place: Place | None
    marks: _Marks


@final
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Marks of every storage: the state, the time, and outputs of modules that stand for the time behind them."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.exits: list[_Exit] = []
        self._rows = rows
        self._marks: dict[int, _Marks] = {}
        self._kept: list[Any] = []  # storages, so that no other takes their number

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch would load its compiler to say so

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        marks = _NONE.union(*(self.of(tensor) for tensor in _tensors((args, kwargs))))
        if marks:
            for tensor in _tensors(out):
                self.mark(tensor, marks | self.of(tensor))
        return out

    def of(self, tensor: Tensor) -> _Marks:
        return self._marks.get(tensor.untyped_storage()._cdata, _NONE)

    def mark(self, tensor: Tensor, marks: _Marks) -> None:
        storage = tensor.untyped_storage()
        self._kept.append(storage)
        self._marks[storage._cdata] = marks

    def leaving(self, path: str, module: nn.Module) -> Callable[..., None]:
        """A hook that notes the output of ``module``; one that depends on the time alone stands for it from now on."""

        def left(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensor = next(_tensors(output), None)
            if tensor is None or not self.of(tensor):
                return
            marks = self.of(tensor)
            passed = {given.untyped_storage()._cdata for given in _tensors((args, kwargs))}
            if tensor.untyped_storage()._cdata not in passed:  # else it is its input, and stands for nothing new
                if STATE not in marks:
                    self.mark(tensor, frozenset({len(self.exits)}))
                self.exits.append(_Exit(path, self._place(path, module, tensor), marks))

        return left

    def _place(self, path: str, module: nn.Module, output: Tensor) -> Place | None:
        if not output.is_floating_point() or output.ndim < 2 or output.shape[0] != self._rows:
            return None
        dim = 1 if output.ndim > 3 or isinstance(module, nn.Conv1d) else output.ndim - 1
        return Place(path, output.shape[dim], dim)


def _named(watch: _Watch, named: Sequence[str]) -> tuple[Place, ...]:
    last = {noted.path: noted.place for noted in watch.exits}
    for path in named:
        if last.get(path) is None:
            raise ConfigError(
                f"The module {path!r} of the teacher's network gives no tensor with a row for each sample that depends "
                "on the state or the time, so that nothing can be added to it. Name another one as "
                "student.time_embedding, or leave it out."
            )
    return tuple(place for path in named if (place := last[path]) is not None)


def _found(watch: _Watch, answer: Tensor) -> tuple[Place, ...]:
    direct = {mark for mark in watch.of(answer) if isinstance(mark, int)}
    exits = watch.exits
    for number in reversed(range(len(exits))):
        noted = exits[number]
        if direct and noted.place is not None and STATE not in noted.marks and not _escapes(exits, direct, number):
            return (noted.place,)
    places = {noted.path: noted.place for number, noted in enumerate(exits) if number in direct and noted.place}
    if not places:  # the bare time meets the state
        mixed = (noted for noted in exits if noted.place and noted.path and {STATE, TIME} <= noted.marks)
        places = {noted.path: noted.place for noted in list(mixed)[:1] if noted.place}
    if not places:
        raise ConfigError(
            "No module of the teacher's network was found that takes in the time: it is a single program, or embeds "
            "the time outside of torch modules. Name modules whose outputs the jump is to be added to with "
            "student.time_embedding or student.add_to; a saved program has none: give its code as the teacher "
            "`callable`."
        )
    return tuple(places.values())


def _escapes(exits: Sequence[_Exit], start: set[int], without: int) -> bool:
    """Whether the time reaches the answer by another way than through exit ``without``."""
    stack, seen = [mark for mark in start if mark != without], set[int]()
    while stack:
        number = stack.pop()
        if number in seen:
            continue
        seen.add(number)
        if TIME in exits[number].marks:
            return True
        stack += [mark for mark in exits[number].marks if isinstance(mark, int) and mark != without]
    return False


def _reached(answer: Tensor, parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Names of the parameters that the graph behind ``answer`` ends in."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found, stack, seen = set[str](), [answer.grad_fn], set[Any]()
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (name := names.get(id(getattr(node, "variable", None)))) is not None:
            found.add(name)
        stack += [following for following, _ in node.next_functions]
    return frozenset(found)


def _submodule(network: nn.Module, path: str) -> nn.Module:
    modules = dict(network.named_modules())
    if not path or path not in modules:
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.3) or list(modules)[1:6]
        raise ConfigError(
            f"The teacher's network has no module {path!r}; expected a path such as {', '.join(map(repr, near))}."
        )
    return modules[path]


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

"""The frozen velocity oracle, and one made of somebody else's network."""

import copy
from abc import abstractmethod
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentChoice
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.build import Buildable
from freeflow_core.math.conversions import Convention
from freeflow_core.math.flow import extrapolate, filled_up
from freeflow_core.types import Condition, Draws, NetworkState, concatenate_conditions, index_condition


class Teacher(nn.Module, Buildable):
    """A velocity field v(x_t, t, c) = dx_t/dt of the path x_t = (1 - t) x + t n, never trained.

    A network of another path is converted by its teacher (:mod:`freeflow_core.math.conversions`).

    Attributes:
        sample_shape: dimensions ``*D`` of one state.
        time_range: (low, high) times at which the field is defined.
        num_classes: number of classes labels run over, or None.
        class_names: what each class is called, such as its prompt, for reports; None: its number.
        guidance_channels: guide the first so many channels (dimension 1 of a batch) alone, as SiT and DiT do in their
            own samplers; the others keep the conditional velocity. None: all.
        codec: name of the codec whose states these are, where the weights say so; None: unknown.
        provenance: where its weights come from and how they are read, in words, or empty.
        component: the name and options it was built by, set by whoever builds it; None: by hand.
        is_divided: its weights are divided among processes, each of which has to ask it equally often; set by the
            engine.
        is_compiled: its blocks are compiled for each number of rows, so that guided rows are filled up to one of a few
            (:func:`freeflow_core.math.flow.filled_up`); set by the engine.
    """

    sample_shape: tuple[int, ...]
    time_range: tuple[float, float] = (0.0, 1.0)
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    guidance_channels: int | None = None
    codec: str | None = None
    provenance: str = ""
    component: ComponentChoice | None = None
    is_divided: bool = False
    is_compiled: bool = False

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """v (N, *D) at states ``x_t`` (N, *D) and times ``t`` (N,) of their dtype and device.

        Called under no_grad, and under forward-mode differentiation by objectives that need the field's derivative.
        """

    def null_condition(self, condition: Condition) -> Condition:
        """The unconditional counterpart of ``condition``, same N.

        Raises ``ConfigError``, as here, when the teacher was not trained unconditionally and so cannot be guided.
        """
        raise ConfigError(
            f"The teacher {type(self).__name__} knows no unconditional counterpart of a condition, so it cannot be "
            "guided. Use a guidance weight of 1."
        )

    def sample_condition(self, draws: Draws) -> Condition:
        """One condition per row of ``draws``, from p(c): labels or prompts are inputs, not data.

        By default labels (N,) on the host, every class equally likely; None without classes.
        """
        return None if self.num_classes is None else draws.integers("label", self.num_classes)

    def balanced_condition(self, index: Tensor) -> Condition:
        """Conditions of sample ``index`` (N,) that cover all classes equally: for pictures and evaluation."""
        return None if self.num_classes is None else index % self.num_classes

    def network_state(self) -> NetworkState | None:
        """Weights that a student of the same family may start from; None when there is no such network."""
        return None

    def student_copy(self, *, share_weights: bool) -> Any:
        """A copy whose ``velocity`` a wrapped student trains: gradients must reach the weights through it.

        Args:
            share_weights: the copy holds this teacher's very tensors, in their dtype, never to be changed (a student
                of low-rank adapters); else its own, of 32 bits or more.

        Raises ``ConfigError`` for a teacher that does not allow it. A teacher made of others returns a copy of the one
        that a student should start from.
        """
        kept: dict[int, Any] = {id(t): t for t in chain(self.parameters(), self.buffers())} if share_weights else {}
        return copy.deepcopy(self, kept)

    @property
    def own_network(self) -> nn.Module:
        """The network itself, without what reads it: where a wrapped student looks for modules, by their paths."""
        return self

    def guided_velocity(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        """Classifier-free guidance v_null + w (v_c - v_null) (Ho & Salimans 2022, eq. 6 with w = 1 unguided).

        One batched call: the unconditional half holds only rows whose weight is not 1. A teacher that is guided by
        something else (autoguidance) overrides it.

        Args:
            x_t: (N, *D) states.
            t: (N,) times.
            condition: N conditions.
            weight: (N,) weights; on the host, choosing rows costs no device sync.
        """
        rows = (weight != 1).nonzero().flatten()
        if rows.numel() == 0:
            return self.velocity(x_t, t, condition)
        asked = filled_up(rows, len(x_t)) if self.is_compiled else rows
        rows_x = asked.to(x_t.device, non_blocking=True)
        null = self.null_condition(index_condition(condition, asked))
        both = self.velocity(
            torch.cat([x_t, x_t[rows_x]]),
            torch.cat([t, t[asked.to(t.device, non_blocking=True)]]),
            concatenate_conditions(condition, null),
        )
        conditional, unconditional = both[: len(x_t)], both[len(x_t) :][: len(rows)]
        return extrapolate(conditional, unconditional, rows, weight, self.guidance_channels)


class ConvertibleTeacher(Teacher):
    """A teacher whose network is read with a convention that somebody had to state, and may have stated wrongly.

    ``freeflow teacher check`` reads such a network in other ways when the given one does not fit.

    Attributes:
        convention: how the network is asked, and what its answer means. The options that hold it are named as
            :meth:`freeflow_core.math.conversions.Convention.options` names them.
    """

    convention: Convention

    @abstractmethod
    def with_convention(self, convention: Convention) -> Self:
        """The same network, not a copy, read in another way."""

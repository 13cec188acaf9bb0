"""Anybody's network with the convention that the user states: a teacher."""

from __future__ import annotations

import contextlib
import copy
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces import BuildContext, ConvertibleTeacher
from freeflow_core.math.conversions import Convention, Prediction, Sign, TimeDirection, ask, velocity_of
from freeflow_core.math.derivative import full_precision
from freeflow_core.math.schedules import named_schedule
from freeflow_core.types import Condition
from freeflow_networks.calling import Conditions, ForeignNetwork, read_embeddings
from freeflow_networks.config import CallableTeacherConfig, ConventionOptions, OwnNetworkOptions, TorchFileTeacherConfig
from freeflow_networks.loading import load_program, make_callable


@final
class OwnNetworkTeacher(ConvertibleTeacher):
    """v(x_t, t, c) of a network read with ``convention``. Conditions are (N,) labels, or None.

    Outside the convention's time range the field is continued constantly in t. Where the answer is divided by a small
    number near an end (a prediction of data, noise or score), autocast and TF32 are off.

    Args:
        network: called with its own states and times.
        convention: what that means.
        sample_shape: ``*D``.
    """

    def __init__(self, network: ForeignNetwork, convention: Convention, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.convention = convention
        self.sample_shape = tuple(sample_shape)
        self.time_range = convention.time_range
        self.num_classes = network.conditions.num_classes
        self.provenance = network.name[0].lower() + network.name[1:]

    @classmethod
    def from_config(cls, config: CallableTeacherConfig | TorchFileTeacherConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when the session is not trusted, or the network cannot be made or asked,
        ``CheckpointError`` for a file that holds none."""
        if isinstance(config, CallableTeacherConfig):
            context.require_trust("The teacher 'callable'", f"import and call {config.network}")
            network = ForeignNetwork(
                make_callable(config), config, conditions_from(config), f"The network {config.network}"
            )
        else:
            context.require_trust("The teacher 'torch-file'", f"run the program in {config.file}")
            name = f"The program in {config.file}"
            network = ForeignNetwork(load_program(config.file), config, conditions_from(config), name, is_program=True)
        teacher = cls(network, convention_from(config), config.sample_shape).to(context.device)
        if context.device.type != "meta":
            teacher.try_out(context.device)
        return teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32)) if self.convention.amplifies else x_t
        question = ask(self.convention, x, t)
        with full_precision(x) if self.convention.amplifies else contextlib.nullcontext():
            answer = self.network(question.x, question.time, condition)
        return velocity_of(self.convention, answer, x, question.t).to(x_t.dtype)

    def with_convention(self, convention: Convention) -> Self:
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.convention = convention
        other.time_range = convention.time_range
        return other

    def null_condition(self, condition: Condition) -> Condition:
        if not isinstance(condition, Tensor):
            raise ConfigError("This teacher is unconditional, so it cannot be guided; use a guidance weight of 1.")
        return self.network.conditions.null(condition)

    @torch.no_grad()
    def try_out(self, device: torch.device) -> None:
        """Ask the network about two and about three states, so that what does not fit shows before anything starts.

        Raises:
            ConfigError: it fails, or its answer is not like the states.
        """
        for num in (2, 3):
            x = torch.randn(num, *self.sample_shape, generator=torch.Generator().manual_seed(0)).to(device)
            t = torch.full((num,), 0.5, dtype=torch.float64)
            try:
                self.velocity(x, t, self.balanced_condition(torch.arange(num)))
            except FreeflowError:
                raise
            except Exception as error:
                hint = "; an exported program needs a dynamic first dimension" if self.network.is_program else ""
                raise ConfigError(
                    f"{self.network.name} failed when it was asked about {num} states {tuple(x.shape)}: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. It is called as "
                    "f(x (N, *D), t (N,), condition (N, ...)) unless teacher.arguments, condition_argument and "
                    f"keywords say otherwise, and must take any N{hint}."
                ) from error


def convention_from(options: ConventionOptions) -> Convention:
    """What the options say."""
    return Convention(
        prediction=Prediction(options.prediction),
        time_direction=TimeDirection(options.time_direction),
        sign=None if options.sign is None else Sign(options.sign),
        schedule=named_schedule(
            options.schedule, num_steps=options.num_steps, start=options.schedule_start, end=options.schedule_end
        ),
        schedule_name=options.schedule,
        time_scale=options.time_scale,
        time_offset=options.time_offset,
        output_scale=options.output_scale,
        data_std=options.data_std,
        low=options.time_low,
        high=options.time_high,
    )


def conditions_from(options: OwnNetworkOptions) -> Conditions:
    """What the options say the network is conditioned on. Raises ``ConfigError`` for a file that does not fit."""
    if options.embeddings is None:
        return Conditions(options.num_classes, options.null_label)
    conditions = read_embeddings(options.embeddings)
    if len(conditions.names) > 1 and options.condition_argument is not None:
        raise ConfigError(
            f"{options.embeddings} holds several tensors ({', '.join(conditions.names)}), which are passed by their "
            "own names. Leave teacher.condition_argument out."
        )
    return conditions

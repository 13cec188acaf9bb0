"""From options to the core's convention."""

from __future__ import annotations

from freeflow_core.math.conversions import Convention, Prediction, Sign, TimeDirection
from freeflow_core.math.schedules import named_schedule
from freeflow_networks.config import ConventionOptions


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

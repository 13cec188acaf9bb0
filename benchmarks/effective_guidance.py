"""How strongly should the corrector's teacher be guided? Measured on the teacher alone, before any training.

A guided velocity v_null + g (v_c - v_null) is not the velocity of any noised distribution. What the corrector should
compare with is the velocity of the *noised guided samples*, v*(x_r, r) = E[n - x | x_r]. Draw guided samples x, noise
them, and regress n - x on the guided family: the weight with the least square error is

    g*(r) = 1 + <n - x - v_c, v_c - v_null> / <v_c - v_null, v_c - v_null>,

because n - x differs from v* by a term of mean zero given x_r. Then c = (g* - 1) / (g - 1) is the value of
`objective.correction_guidance_scale` that fits noise level r: with it a student that has the teacher's distribution is
left alone. Students that have not come so far may want more (docs/reference/balance.md).

Levels at which the two velocities are the same to a thousandth have none (-): there guidance changes nothing.

python benchmarks/effective_guidance.py --teacher digits --guidance-weight 2.5 [--set NAME=VALUE]
"""

from __future__ import annotations

import argparse
import math

import torch

from freeflow_core.api import load_teacher
from freeflow_core.config import ComponentChoice
from freeflow_core.config.load import lay_settings
from freeflow_core.engine.build import Builder
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import linear_interpolate, linear_velocity
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin import Manager, Registry

_LEAST = 1e-6
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@torch.no_grad()
def effective_guidance(
    teacher: Teacher, guidance: tuple[float, float, float], num: int, steps: int, repeats: int, seed: int
) -> list[tuple[float, float]]:
    """(r, g*) for each noise level; NaN where guidance changes nothing."""
    manager = Manager.load()
    builder = Builder(Registry(manager), torch.device("cpu"), seed)
    generator = Generator(
        builder.build("sampler", ComponentChoice(name="heun")),
        steps,
        builder.build("codec", ComponentChoice(name="pixels")),
        teacher=teacher,
        seed=seed,
        guidance_weight=guidance[0],
        guidance_low=guidance[1],
        guidance_high=guidance[2],
    )
    batch = generator.batch(torch.arange(num))
    condition = teacher.balanced_condition(batch.index)
    null = teacher.null_condition(condition)
    result = []
    for level in LEVELS:
        along = torch.zeros((), dtype=torch.float64)
        square = torch.zeros((), dtype=torch.float64)
        whole = torch.zeros((), dtype=torch.float64)
        for repeat in range(repeats):
            draws = PhiloxDraws(seed + 1, batch.index + repeat * num)
            noise = draws.noise(f"noise-{level}", tuple(teacher.sample_shape))
            r = torch.full((num,), level)
            x_r = linear_interpolate(batch.x, noise, r)
            conditional, unconditional = teacher.velocity(x_r, r, condition), teacher.velocity(x_r, r, null)
            difference = (conditional - unconditional).double()
            along += ((linear_velocity(batch.x, noise) - conditional).double() * difference).sum()
            square += difference.square().sum()
            whole += conditional.double().square().sum()
        result.append((level, 1 + float(along / square) if square > _LEAST * whole else math.nan))
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="digits")
    parser.add_argument("--guidance-weight", type=float, default=2.5)
    parser.add_argument("--guidance-low", type=float, default=0.0, help="guided for t in [low, high]")
    parser.add_argument("--guidance-high", type=float, default=1.0)
    parser.add_argument("--num", type=int, default=2000, help="guided samples")
    parser.add_argument("--steps", type=int, default=30, help="Heun steps")
    parser.add_argument("--repeats", type=int, default=4, help="noise draws per sample and level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the teacher")
    options = parser.parse_args()
    teacher = load_teacher(options.teacher, options=lay_settings({}, options.set))
    weight = options.guidance_weight
    interval = f"[{options.guidance_low:g}, {options.guidance_high:g}]"
    print(f"{options.teacher} guided at {weight:g} for t in {interval}: guidance that fits its noised samples best")
    print("     r      g*       c")
    guidance = (weight, options.guidance_low, options.guidance_high)
    for level, best in effective_guidance(teacher, guidance, options.num, options.steps, options.repeats, options.seed):
        found = "      -       -" if math.isnan(best) else f"{best:7.3f} {(best - 1) / (weight - 1):7.3f}"
        print(f"{level:6.2f} {found}")


if __name__ == "__main__":
    main()

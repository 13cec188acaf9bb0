"""The published sampler runs of REPA, through the teacher and samplers as a user names them."""

import pytest
import torch
from safetensors.torch import load_file

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.math.flow import uniform_grid
from freeflow_core.types import Guidance

RUNS = {
    "euler_nocfg": ("euler", 12, Guidance(torch.tensor([1.0]))),
    "heun_cfg": ("heun", 10, Guidance(torch.tensor([1.8]), 0.0, 0.7)),
    "euler_cfg": ("euler", 25, Guidance(torch.tensor([2.5]), 0.2, 0.9)),
}


@pytest.mark.parametrize("run", list(RUNS))
def test_samples_are_the_published_ones(golden, registry, run):
    name, num_steps, guidance = RUNS[run]
    reference = load_file(golden / "a-repa-sampler.safetensors")
    builder = Builder(registry, torch.device("cpu"), seed=0)
    checkpoint = {"checkpoint": str(golden / "a-repa.pt"), "num_heads": 4}
    teacher = builder.teacher(ComponentChoice(name="sit-repa", options=checkpoint))
    options = {"state_dtype": "float64"}
    if name == "heun":
        options["final_euler"] = True
    sampler = builder.build("sampler", ComponentChoice(name=name, options=options))
    num = len(reference["z"])
    given = Guidance(guidance.weight.double().expand(num), guidance.low, guidance.high)
    samples = sampler.sample(teacher, reference["z"], uniform_grid(num_steps), reference["y"], given)
    torch.testing.assert_close(samples.x, reference[run], rtol=0, atol=1e-4)

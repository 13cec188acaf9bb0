import pytest
import torch
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.formats import released_name
from freeflow_transformers.teachers import TransformerTeacher

from freeflow_core.interfaces import BuildContext

SMALL = {"sample_shape": (2, 4, 6), "patch_size": 2, "width": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def make_network():
    """Small networks; ``random=True`` fills every parameter, so that no layer is still zero."""

    def make(*, random=True, seed=0, dtype=torch.float32, **options):
        generator = torch.Generator().manual_seed(seed)
        network = DiffusionTransformer(TransformerConfig(**{**SMALL, **options}), generator).to(dtype)
        if random:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return network

    return make


@pytest.fixture
def teacher(make_network):
    return TransformerTeacher(make_network())


@pytest.fixture
def make_context():
    def make(teacher=None, source=None, seed=0, device="cpu", weights=None):
        def component(kind, name, options):
            raise AssertionError(f"nothing here builds another component, asked for {kind} {name}")

        def no_weights(name):
            raise AssertionError(f"nothing here fetches weights, asked for {name}")

        return BuildContext(torch.device(device), seed, component, teacher, source, weights=weights or no_weights)

    return make


@pytest.fixture
def states():
    def make(num, shape=(2, 4, 6), dtype=torch.float32):
        return torch.randn(num, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)

    return make


FAMILIES = {
    "sit": {"learn_sigma": True},
    "sit-512": {},
    "sit-repa": {"projectors": True},
    "dit": {"learn_sigma": True},
    "freeflow": {"learn_sigma": True, "jump": True, "guidance": True},
    "freeflow-512": {"jump": True, "guidance": True},
}
"""What tells their files apart; a sit file and a dit file differ in nothing."""


@pytest.fixture
def released_tensors(make_network):
    """Tensors of a tiny checkpoint as a family publishes it."""

    def make(family, **options):
        values = {"sample_shape": (4, 8, 8), "num_classes": 10, **FAMILIES[family], **options}
        projectors = values.pop("projectors", False)
        network = make_network(**values)
        student = network.config.jump
        tensors = {released_name(name, student=student): t for name, t in network.state_dict().items()}
        if projectors:
            tensors |= {f"projectors.0.{i}.weight": torch.zeros(8, 24) for i in (0, 2, 4)}
        return tensors

    return make


@pytest.fixture
def write_checkpoint(tmp_path, released_tensors):
    """Write one under a name that says nothing."""

    def write(family, name="weights.pt", **options):
        torch.save(released_tensors(family, **options), tmp_path / name)
        return tmp_path / name

    return write

import pytest
import torch
from freeflow_data.config import PixelsConfig
from freeflow_data.plain import PixelCodec

from freeflow_core.errors import ConfigError


@pytest.fixture
def codec():
    return PixelCodec(PixelsConfig())


ALL_VALUES = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)


def test_all_values_come_back_exactly(codec):
    images = ALL_VALUES.clone()
    x = codec.encode(images)
    assert torch.equal(images, ALL_VALUES)
    assert x.dtype == torch.float32
    assert torch.equal(codec.decode(x), ALL_VALUES)
    even = torch.linspace(-1, 1, 256, dtype=torch.float64)
    torch.testing.assert_close(x.double().flatten(), even, rtol=0, atol=1e-7)


def test_decoding_rounds_and_clamps_and_leaves_its_input_alone(codec):
    values = torch.tensor([-50.0, -0.4, 0.4, 0.6, 100.49, 100.51, 254.6, 255.4, 900.0])
    x = values / 127.5 - 1
    before = x.clone()
    assert codec.decode(x).tolist() == [0, 0, 0, 1, 100, 101, 255, 255, 255]
    assert torch.equal(x, before)


def test_float_images_are_refused(codec):
    with pytest.raises(ConfigError, match="uint8 images"):
        codec.encode(torch.zeros(2, 1, 4, 4))

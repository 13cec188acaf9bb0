"""What teachers and students promise alike: networks that are asked at states and times."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freeflow_core.math.derivative import AGREES, forward_mode_error
from freeflow_core.testing.contracts.base import ComponentContract
from freeflow_core.tools.cost.fake import FakeTensors
from freeflow_core.types import describe, index_condition

ROWS = 6
ROWS_ALONE = "Times are (N,), one a row; normalise within a sample, or by fixed statistics, never over the batch."
_CAST = "Cast constants and times with .to(x_t); freeflow_core.math.flow.expand_times does so for times."


class NetworkContract(ComponentContract):
    """Checks that do not depend on what the network predicts."""

    answer = "states"
    """What it gives, in words."""

    @abstractmethod
    def network(self, device: str = "cpu") -> nn.Module:
        """The component, float32."""

    @abstractmethod
    def arguments(self, network: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """What it is asked: states (N, *D), times (N,) of the same dtype, and so on."""

    @abstractmethod
    def ask(self, network: Any, *arguments: Any) -> Tensor:
        """Its answer (N, *D)."""

    def test_declares_its_states(self) -> None:
        network: Any = self.network()
        shape = getattr(network, "sample_shape", None)
        good = isinstance(shape, tuple) and len(shape) > 0 and all(isinstance(d, int) and d > 0 for d in shape)
        self.expect(good, "sample_shape, a tuple of the dimensions of one state", repr(shape))
        classes = network.num_classes
        self.expect(classes is None or classes >= 1, "num_classes: a number from 1 on, or None", repr(classes))
        low, high = getattr(network, "time_range", (0.0, 1.0))
        self.expect(0 <= low < high <= 1, "a time_range (low, high) within [0, 1]", repr((low, high)))

    def test_float32_in_float32_out(self) -> None:
        self._expect_dtype(torch.float32)

    def test_float64_in_float64_out(self) -> None:
        self._expect_dtype(torch.float64)

    def test_works_under_bf16_autocast(self) -> None:
        network = self.network()
        arguments = self.arguments(network)
        x = arguments[0]
        with torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16):
            found = self.ask(network, *arguments)
        self.expect_tensor(found, x.shape, f"{self.answer} under bf16 autocast")

    def test_inputs_are_left_alone(self) -> None:
        network = self.network()
        arguments = self.arguments(network)
        with self.expect_untouched(*arguments):
            self.ask(network, *arguments)

    def test_rows_do_not_depend_on_each_other(self) -> None:
        network = self.network().double().eval()
        arguments = self.arguments(network, torch.float64)
        rows = torch.tensor([4, 1])
        alone = self.ask(network, *(index_condition(value, rows) for value in arguments))
        expected = f"each row's {self.answer} to depend on its own state, times and condition alone"
        self.expect_close(self.ask(network, *arguments)[rows], alone, 1e-6, expected, ROWS_ALONE)

    def test_runs_on_cuda(self) -> None:
        if not torch.cuda.is_available():
            self.skip("there is no CUDA device here")
        here = self.network()
        arguments = self.arguments(here)
        there = [v.cuda() if isinstance(v, Tensor) and v.is_floating_point() else v for v in arguments]
        found = self.ask(self.network("cuda"), *there)
        self.expect(found.device.type == "cuda", f"{self.answer} on the states' device", describe(found))
        self.expect_close(found.cpu(), self.ask(here, *arguments), 2e-2, f"the same {self.answer} on both devices")

    def test_cost_can_be_estimated(self) -> None:
        network = self.network()
        x, *others = self.arguments(network)
        fake = FakeTensors("cpu")
        fake.convert(network)
        with torch.no_grad(), fake.active():
            found = self.ask(network, torch.empty_like(x), *others)
        self.expect(found.shape == x.shape, f"{self.answer} {tuple(x.shape)} without weights", describe(found))

    def expect_derivative(
        self, name: str, function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> None:
        """Fail unless forward mode agrees with central differences, all in float64."""
        error = forward_mode_error(function, primals, tangents)
        advice = "Do not detach, round or rebuild states and times from numbers inside the network."
        expected = f"{name} by forward mode to be what central differences approach, to {AGREES:g}"
        self.expect(error < AGREES, expected, f"a relative error of {error:.2g} at the best step", advice)

    def _expect_dtype(self, dtype: torch.dtype) -> None:
        network, name = self.network().to(dtype), str(dtype).removeprefix("torch.")
        found = self.ask(network, *self.arguments(network, dtype))
        self.expect(found.dtype is dtype, f"{name} {self.answer} from {name} states", describe(found), _CAST)

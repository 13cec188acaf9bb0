"""The transformer as a policy student."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from pydantic import ValidationError
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError
from freeflow_core.interfaces import BuildContext, PolicyStudent, Teacher
from freeflow_core.math.policies import DXPolicy, GMPolicy, Policy
from freeflow_core.network_file import check_tensors
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.config_policy import PolicyOptions, PolicyTransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.policy_head import PolicyHead
from freeflow_transformers.sizing import student_architecture
from freeflow_transformers.weights import take_weights, teacher_architecture

FAMILY = "policy-transformer"
"""Of the tensors' names: a diffusion transformer's, but for the last layer."""
_HEAD = "final_layer"


@final
class PolicyTransformer(PolicyStudent):
    """A policy over [s, t] from one pass of the transformer (pi-Flow: Chen et al. 2025, arXiv 2510.14974).

    ``forward`` gives (N, P, H, W): the policy's velocities and, for ``gm``, logits at every pixel and one deviation a
    sample. t and d = t - s are inputs, and by default the guidance weight, as for the student ``transformer``.

    Args:
        network: with the duration as an input, and no learnt variances; its last layer is replaced.
        options: of the policy.
        seed: of the new parts.
        from_teacher: whether ``load_teacher`` copies weights, or leaves the network as it is.
    """

    def __init__(
        self, network: DiffusionTransformer, options: PolicyOptions, *, seed: int = 0, from_teacher: bool = True
    ) -> None:
        super().__init__()
        if not network.config.jump or network.config.learn_sigma:
            raise ValueError("a policy needs a network with the duration as an input and without learnt variances")
        generator = torch.Generator().manual_seed(seed)
        network.add_module(_HEAD, PolicyHead(network.config, options, generator, network.pos_embed.device))
        self.network = network
        self.options = options
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None
        self.shift, self.num_substeps = options.shift, options.num_substeps
        self._seed, self._from_teacher = seed, from_teacher

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, PolicyTransformerConfig)
        architecture = student_architecture(config, context, num_classes=None, jump=True, guidance=config.guidance)
        architecture = architecture.model_copy(update={"learn_sigma": False})
        if context.device.type == "meta":
            network = DiffusionTransformer(architecture, device="meta")
        else:
            network = DiffusionTransformer(architecture, torch.Generator().manual_seed(context.seed))
        options = PolicyOptions(**{name: getattr(config, name) for name in PolicyOptions.model_fields})
        return cls(network, options, seed=context.seed, from_teacher=config.initialise == "teacher")

    @property
    def head(self) -> PolicyHead:
        """The network's last layer."""
        head = self.network.get_submodule(_HEAD)
        assert isinstance(head, PolicyHead)
        return head

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        if t.device != s.device:
            t, s = (time.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32)) for time in (t, s))
        if not self.network.config.guidance:
            guidance = None
        elif guidance is None:
            guidance = torch.ones_like(t)
        images: Tensor = self.network(x_t, self.network.own_time(t), condition, t - s, guidance)
        return images.reshape(len(x_t), -1, *images.shape[2:])

    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        head = self.head
        velocities = head.velocities(output)
        velocities = self.network.velocity(velocities.flatten(0, 1)).reshape(velocities.shape)
        if self.options.policy == "dx":
            return DXPolicy(velocities, x_t, t, s, shift=self.shift)
        return GMPolicy(velocities, *head.mixture(output), x_t, t)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """All of its weights; its last layer once for every velocity.

        Raises ``ConfigError``, listing the differences, for a teacher whose weights do not fit.
        """
        own, base = self.network.state_dict(), teacher_architecture(teacher)
        if not self._from_teacher:
            state = teacher.network_state()
            return LoadReport(new=tuple(own), left=() if state is None else tuple(state.tensors))
        plain = _plain(self.network.config.model_copy(update={"learn_sigma": base is not None and base.learn_sigma}))
        if not self.network.pos_embed.is_meta:
            plain.to_empty(device="cpu")  # what it takes from the teacher is filled, and nothing else is read
        report = take_weights(plain, teacher)
        if not report.taken:
            return LoadReport(new=tuple(own))
        linear = {f"{_HEAD}.linear.weight", f"{_HEAD}.linear.bias"}
        tensors = plain.state_dict()
        self.network.load_state_dict({n: tensors[n] for n in report.taken if n not in linear}, strict=False)
        self.head.take(plain.final_layer.linear, torch.Generator().manual_seed(self._seed))
        new = tuple(name for name in own if name not in report.taken)
        return LoadReport(taken=report.taken, new=new, left=report.left)

    def enable_activation_checkpointing(self) -> None:
        self.network.checkpoint_activations = True

    def network_state(self) -> NetworkState:
        config = {"architecture": self.network.config.model_dump(mode="json"), "policy": self.options.model_dump()}
        return NetworkState(FAMILY, config, self.network.state_dict())

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        if state.family != FAMILY:
            raise CheckpointError(
                f"A policy-transformer student needs a network of the family {FAMILY!r}, but this one is "
                f"{state.family!r}. Choose the student that wrote the checkpoint."
            )
        architecture = TransformerConfig.from_stored(state.config.get("architecture"))
        student = cls(_plain(architecture), _stored_options(state.config.get("policy")))
        check_tensors(student.network.state_dict(), state.tensors, "policy student's checkpoint")
        student.to(state.tensors["x_embedder.proj.weight"].dtype)
        if not any(tensor.is_meta for tensor in state.tensors.values()):
            student.to_empty(device="cpu").network.load_state_dict(dict(state.tensors))
        return student


def _plain(architecture: TransformerConfig) -> DiffusionTransformer:
    """Shapes alone."""
    return DiffusionTransformer(architecture, device="meta")


def _stored_options(values: Any) -> PolicyOptions:
    try:
        return PolicyOptions.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(
            f"The policy stored with the weights is not usable ({' '.join(str(error).split())}). The file was edited, "
            "or written by another version of this plugin: use the version that wrote it."
        ) from None

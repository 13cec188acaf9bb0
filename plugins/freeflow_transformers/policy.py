"""A transformer that emits a policy: its last layer, and the student (pi-Flow: Chen et al. 2025)."""

import math
from typing import Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError
from freeflow_core.interfaces import BuildContext, PolicyStudent, Teacher
from freeflow_core.math.policies import DXPolicy, GMPolicy, Policy
from freeflow_core.network_file import check_tensors
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.config import PolicyOptions, PolicyTransformerConfig
from freeflow_transformers.network import DiffusionTransformer, FinalLayer, allocate, modulate
from freeflow_transformers.students import fresh_network, jump_output, nothing_taken, student_architecture
from freeflow_transformers.weights import take_weights, teacher_architecture

FAMILY = "policy-transformer"
"""Of the tensors' names: a diffusion transformer's, but for the last layer."""
_HEAD = "final_layer"


@final
class PolicyHead(nn.Module):
    """Tokens (N, T, width) to the patches of several images of C channels each, (N images, T, patch_size^2 C).

    In the place of :class:`freeflow_transformers.network.FinalLayer`, whose names it keeps, it answers with as many
    images a sample as a policy has parts, folded into the batch: K velocities; for ``gm`` K logits, one channel each;
    and one image of the logarithm of the deviation, predicted from the conditioning alone, which gets no gradient.
    On the device ``meta`` it has its shapes alone; elsewhere ``generator``, of the host, draws what starts at random.
    """

    def __init__(
        self, architecture: TransformerConfig, options: PolicyOptions, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__()
        self.channels, self.components = architecture.channels, options.components
        mixture = options.policy == "gm"
        self._num_maps = self.components + (-(-self.components // self.channels) if mixture else 0)
        self.num_images = self._num_maps + int(mixture)
        self._options = options
        with torch.device("meta"):  # no constructor draws weights from the global generator
            plain = FinalLayer(architecture.width, architecture.patch_size, architecture.channels)
            self.norm_final, self.adaLN_modulation = plain.norm_final, plain.adaLN_modulation
            self.linear = nn.Linear(architecture.width, self._num_maps * plain.linear.out_features)
            width, hidden = architecture.width, options.std_width
            deviation = nn.Sequential(nn.SiLU(), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
            self.log_std = deviation if mixture else None
        allocate(self, device)
        if device.type != "meta":
            self._reset(generator)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        maps: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        num, tokens = maps.shape[:2]
        images = maps.reshape(num, tokens, self._num_maps, -1).transpose(1, 2)
        if self.log_std is not None:
            log_std = self.log_std(c.detach()).reshape(num, 1, 1, 1).to(images.dtype)
            images = torch.cat([images, log_std.expand(num, 1, *images.shape[2:])], 1)
        return images.reshape(num * self.num_images, tokens, -1)

    def velocities(self, output: Tensor) -> Tensor:
        velocities = output[:, : self.components * self.channels]
        return velocities.reshape(-1, self.components, self.channels, *output.shape[2:])

    def mixture(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K, 1, H, W) and logarithms of the deviation (N,), for ``gm``."""
        first = self.components * self.channels
        return output[:, first : first + self.components].unsqueeze(2), output[:, -1, 0, 0]

    @torch.no_grad()
    def take(self, linear: nn.Linear, generator: torch.Generator) -> None:
        """Start every velocity as a velocity network's last layer, (patch_size^2 out_channels, width), logits at 0."""
        for own, other in ((self.linear.weight, linear.weight), (self.linear.bias, linear.bias)):
            velocities = self._velocities(own.zero_())
            pixels = velocities.shape[1]
            velocities.copy_(other.reshape(pixels, -1, *other.shape[1:])[:, : self.channels].expand_as(velocities))
        self._spread(generator)

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        """A last layer and a modulation of 0, as in DiT, but for the components' differences."""
        for parameter in self.parameters():
            parameter.zero_()
        self._spread(generator)
        if self.log_std is not None:
            hidden, last = self.log_std[1], self.log_std[3]
            assert isinstance(hidden, nn.Linear)
            assert isinstance(last, nn.Linear)
            nn.init.xavier_uniform_(hidden.weight, generator=generator)
            nn.init.constant_(last.bias, math.log(self._options.initial_std))

    def _spread(self, generator: torch.Generator) -> None:
        if self.log_std is not None:
            noise = torch.randn(self.components, 1, self.channels, generator=generator, device="cpu")
            bias = self._velocities(self.linear.bias)
            bias.add_(self._options.mean_noise * noise.to(bias.device, bias.dtype))

    def _velocities(self, parameter: Tensor) -> Tensor:
        """The velocities' part of the linear layer's weight or bias, a view (K, pixels, C, ...)."""
        maps = parameter.view(self._num_maps, -1, self.channels, *parameter.shape[1:])
        return maps[: self.components]


@final
class PolicyTransformer(PolicyStudent):
    """A policy over [s, t] from one pass of the transformer (pi-Flow: Chen et al. 2025).

    ``forward`` gives (N, P, H, W): the policy's velocities and, for ``gm``, logits at every pixel and one deviation a
    sample. t and d = t - s are inputs, and by default the guidance weight, as for the student ``transformer``.

    ``network`` has no learnt variances, and its last layer is replaced; ``seed`` is that of the new parts, and
    ``from_teacher`` says whether ``load_teacher`` copies weights.
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
    def from_config(cls, config: PolicyTransformerConfig, context: BuildContext) -> Self:
        architecture = student_architecture(config, context, num_classes=None, jump=True, guidance=config.guidance)
        architecture = architecture.model_copy(update={"learn_sigma": False})
        options = PolicyOptions(**{name: getattr(config, name) for name in PolicyOptions.model_fields})
        network = fresh_network(architecture, context)
        return cls(network, options, seed=context.seed, from_teacher=config.initialise == "teacher")

    @property
    def head(self) -> PolicyHead:
        head = self.network.get_submodule(_HEAD)
        assert isinstance(head, PolicyHead)
        return head

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        images = jump_output(self.network, x_t, t, s, condition, guidance)
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
            return nothing_taken(teacher, own)
        learn_sigma = base is not None and base.learn_sigma
        plain = DiffusionTransformer(self.network.config.model_copy(update={"learn_sigma": learn_sigma}), device="meta")
        if not self.network.pos_embed.is_meta:
            allocate(plain, "cpu")  # what it takes from the teacher is filled, and nothing else is read
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
        options = PolicyOptions.from_stored(state.config.get("policy"))
        student = cls(DiffusionTransformer(architecture, device="meta"), options)
        check_tensors(student.network.state_dict(), state.tensors, "policy student's checkpoint")
        student.to(state.tensors["x_embedder.proj.weight"].dtype)
        if not any(tensor.is_meta for tensor in state.tensors.values()):
            allocate(student, "cpu")
            student.network.load_state_dict(dict(state.tensors))
        return student

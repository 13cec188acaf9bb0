"""What an objective promises, in a tiny run of a few steps: networks of a few weights on a mixture in the plane."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from freeflow_core.config.load import resolve
from freeflow_core.engine.build import Components, build_components
from freeflow_core.engine.checkpoint import Checkpoints
from freeflow_core.engine.state import TrainingState, build_state
from freeflow_core.engine.trainer import LocalMeans, MicroBatch, Trainer, check_losses
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces.objective import Model, Models, Objective, ObjectiveInRounds, Role
from freeflow_core.interfaces.student import PolicyStudent, StartTimes, Student
from freeflow_core.testing.contracts.base import Choice, WithTeacher, draws_of, same
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.tools.cost.step import PlannedProcess
from freeflow_core.types import Batch, Loss, Progress, describe

ROWS = 16
_STEPS = 64
_MOST_STEPS = 8
"""A student may be updated less often than another role, but within so many steps."""
_MEAN, _STD = (0.5, -1.0), (0.6, 1.4)
_BATCHES, _EXACT_ROWS = 8, 256


@dataclass(frozen=True)
class Scene:
    """A run that is about to take its first step, with an objective that has its data, teacher and student."""

    components: Components
    state: TrainingState
    trainer: Trainer

    def networks(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {name: role.network for name, role in self.state.roles.items()}
        return found if self.components.teacher is None else found | {"teacher": self.components.teacher}

    def train(self, steps: int) -> Scene:
        for _ in range(steps):
            self.trainer.step()
        return self

    def losses(self, micro: MicroBatch | None = None) -> dict[str, Loss]:
        """The objective's losses of one micro-batch, by default of the first step; means are those of its own rows."""
        micro, models = micro or self.trainer.peek(), self.state.models(self.components)
        losses = self.components.objective.losses
        return dict(losses(models, micro.batch, micro.draws, self.trainer.progress, LocalMeans()))


class ObjectiveContract(WithTeacher):
    """Checks of an objective.

    Attributes:
        student, student_options: a student it can train; None: a tiny one of the class it requires.
        source, source_options: the data of an objective that needs some; None: exact samples of the default teacher.
        codec: between source and student.
        stationary: what holds at the exact flow map of a Gaussian, where nothing is left to learn. True: the student's
            gradient vanishes in every batch. ``"limit"``: it is small against that of a student a tenth away, as for
            objectives that are right on average or in the limit of many steps. False: neither is promised.
    """

    kind: ClassVar[str] = "objective"
    student: ClassVar[str | None] = None
    student_options: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str | None] = None
    source_options: ClassVar[Mapping[str, Any]] = {}
    codec: ClassVar[str | None] = None
    stationary: ClassVar[bool | Literal["limit"]] = "limit"

    def test_builds_from_its_configuration(self) -> None:
        self.objective()

    def test_declares_what_it_needs(self) -> None:
        objective = self.objective()
        needed, start = objective.requires, objective.start_times
        good = isinstance(needed, type) and issubclass(needed, Student)
        self.expect(good, "requires: a class of freeflow_core.interfaces.Student", repr(needed))
        good = isinstance(start, StartTimes)
        self.expect(good, "start_times: one of freeflow_core.interfaces.StartTimes", repr(start))

    def test_finds_a_student_to_train(self) -> None:
        self.scene()

    def test_roles_are_networks_of_their_own(self) -> None:
        components = self.scene().components
        roles = components.objective.roles(components.student, components.teacher)
        owners: dict[int, str] = {}
        named: dict[str, nn.Module] = {"student": components.student}
        if components.teacher is not None:
            named["teacher"] = components.teacher
        for name, role in roles.items():
            self.expect(isinstance(role, Role), f"a Role for {name!r} from roles()", describe(role))
            named[name] = role.network
        for name, network in named.items():
            for p in network.parameters():
                other = owners.setdefault(p.data_ptr(), name)
                own, came = other == name or p.numel() == 0, f"one that shares them with {other!r}"
                self.expect(own, f"a role {name!r} with weights of its own", came, "Give it copy.deepcopy(student).")

    def test_losses_are_one_number_a_sample(self) -> None:
        scene = self.scene()
        losses = scene.losses()
        check_losses(self.component, losses, scene.state, ROWS)
        for role, loss in losses.items():
            self.expect_tensor(loss.per_sample, loss.per_sample.shape, f"losses for {role!r}")
            for name, term in loss.terms.items():
                good = isinstance(term, Tensor) and term.ndim == 0 and not term.requires_grad
                came = f"{describe(term)}{', with gradient' if isinstance(term, Tensor) and term.requires_grad else ''}"
                advice = "Return value.detach().mean(), without .item(): reading it would wait for the device."
                self.expect(good, f"the term {name!r} of {role!r} as a detached 0-d tensor", came, advice)

    def test_losses_depend_on_their_draws_alone(self) -> None:
        scene = self.scene()
        micro = scene.trainer.peek()

        def losses() -> dict[str, Tensor]:
            return {role: loss.per_sample for role, loss in scene.losses(micro).items()}

        self.expect_repeatable(losses, "losses() of one batch")

    def test_every_trainable_role_gets_its_loss(self) -> None:
        scene = self.scene().train(_MOST_STEPS)
        idle = [name for name, role in scene.state.roles.items() if role.optimizer is not None and not role.updates]
        expected = f"a loss for every trainable role within {_MOST_STEPS} steps"
        advice = "Return one in losses(), or give the role trainable=False."
        self.expect(not idle, expected, f"none for {', '.join(idle)}", advice)

    def test_gradients_reach_their_own_role_alone(self) -> None:
        scene = self.scene()
        for role, loss in scene.losses().items():
            loss.per_sample.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            for name, network in scene.networks().items():
                gradients = [p.grad for p in network.parameters() if p.grad is not None]
                if name == role:
                    finite = bool(gradients) and all(bool(torch.isfinite(g).all()) for g in gradients)
                    self.expect(finite, f"a finite gradient of {role!r} from its loss", "none, or one with NaN")
                else:
                    moved = any(bool((g != 0).any()) for g in gradients)
                    expected = f"the loss of {role!r} to train {role!r} alone"
                    advice = "All losses are added up and go backward once: detach() what the other network gave."
                    self.expect(not moved, expected, f"a gradient in {name!r}", advice)
                network.zero_grad(set_to_none=True)

    def test_nothing_else_trains(self) -> None:
        scene = self.scene()
        objective, roles = scene.components.objective, scene.state.roles
        changes = objective.transitions(scene.trainer.progress) if isinstance(objective, ObjectiveInRounds) else ()
        may_change = {change.copy_to for change in changes}
        may_change |= {name for name, role in roles.items() if role.optimizer is not None or role.follows is not None}
        before = {name: _copies(network) for name, network in scene.networks().items()}
        scene.train(3)
        for name, network in scene.networks().items():
            unchanged = name in may_change or same(before[name], _copies(network))
            self.expect(unchanged, f"{name!r}, which is frozen, unchanged", "changed weights")
        moved = roles["student"].updates == 0 or not same(before["student"], _copies(scene.networks()["student"]))
        self.expect(moved, "a student that learns", "the same weights after three steps")

    def test_means_are_the_same_however_the_batch_is_split(self) -> None:
        found = []
        for accumulation in (1, 2):
            metrics = self.scene(accumulation=accumulation, precision="float64").train(1).trainer.read_metrics()
            found.append({k: v for k, v in metrics.items() if k.endswith(("/loss", "/gradient_norm"))})
        whole, split = found
        for name, value in whole.items():
            error = abs(split.get(name, float("inf")) - value) / max(abs(value), 1e-9)
            came = f"{split.get(name, float('nan')):.6g} from two micro-batches"
            advice = "Choose rows by draws.split, and take means from context.mean, with uses_batch_means."
            self.expect(error < 1e-6, f"{name} = {value:.6g} however the batch is split", came, advice)

    def test_resumes_bit_for_bit(self) -> None:
        through, first, again = self.scene().train(10), self.scene().train(5), self.scene()
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), 1)
            checkpoints.load(checkpoints.save(first.state, {}), again.state)
        trainer = Trainer(again.trainer.config, again.components, again.state, again.trainer.accelerator)
        resumed = Scene(again.components, again.state, trainer).train(5)
        expected, found = through.state.tensors(), resumed.state.tensors()
        for name, tensors in expected.items():
            what = f"{name} after a restart to be what it is without one"
            advice = "Keep what losses() remembers between steps in a StatefulObjective."
            self.expect(same(tensors, found[name]), what, "other numbers", advice)

    def test_runs_in_bf16(self) -> None:
        try:
            scene = self.scene(precision="bf16").train(1)
        except ConfigError:
            self.skip("it refuses bf16 by a ConfigError")
        scene.trainer.read_metrics()

    def test_runs_on_cuda(self) -> None:
        if not torch.cuda.is_available():
            self.skip("there is no CUDA device here")
        self.scene(device="cuda").train(1).trainer.read_metrics()

    def test_the_exact_map_is_a_stationary_point(self) -> None:
        if self.stationary is False:
            self.skip("the contract says that it promises none (stationary = False)")
        at_solution, away = self._gradients(0.0), self._gradients(0.1)
        size = max(float(away.mean(0).norm()), 1e-30)
        if self.stationary is True:
            worst = float(at_solution.norm(dim=1).max()) / size
            advice = "Set stationary = 'limit' where it only vanishes on average or for many steps."
            expected = "no gradient at the exact flow map, in any batch"
            self.expect(worst < 1e-6, expected, f"up to {worst:.2g} of that a tenth away", advice)
            return
        noise = float(at_solution.std(0).norm()) / len(at_solution) ** 0.5
        left = max(float(at_solution.mean(0).norm()) - 3 * noise, 0.0) / size
        expected = "a small gradient at the exact flow map, against that of a student 0.1 off in mean and deviation"
        advice = "Look for a wrong sign or time, or a missing factor. Set stationary = False for another solution."
        self.expect(left < 0.25, expected, f"{left:.2g} of it", advice)

    def scene(self, *, accumulation: int = 1, precision: str = "float32", device: str = "cpu") -> Scene:
        """A run of the objective with a teacher and student that fit it, ready for its first step."""

        def beside(teacher: Choice) -> Scene:
            config = resolve(self._registry(), self._settings(teacher, accumulation, precision))
            process = cast(Accelerator, PlannedProcess(1, torch.device(device)))
            components = build_components(self.builder(device, precision), config)
            state = build_state(config, components, process)
            return Scene(components, state, Trainer(config, components, state, process))

        return self.first_that_fits(self.teachers(), beside)

    def objective(self, teacher: Choice | None = None, precision: str = "float32") -> Objective:
        beside = self.build_teacher(teacher or self.teachers()[0])
        built: Objective = self.builder(precision=precision).build("objective", self._choice(), teacher=beside)
        return built

    def _settings(self, teacher: Choice, accumulation: int, precision: str) -> dict[str, Any]:
        objective, (name, options) = self.objective(teacher), teacher
        digits = name == "digits"
        source: Mapping[str, Any] = {"name": "prior"}
        if objective.needs_data and self.source is None:
            source = {"name": "digits"} if digits else {"name": "gaussian-mixture", **options}
        elif objective.needs_data:
            source = {"name": self.source, **self.source_options}
        student: dict[str, Any] = {"name": self.student, **self.student_options}
        if self.student is None:
            policy = issubclass(objective.requires, PolicyStudent)
            student = {"name": "mlp-policy", "num_substeps": 8} if policy else {"name": "mlp"}
            student |= {"width": 16, "depth": 1}
            if not objective.needs_teacher:
                student |= {"sample_shape": [2], "num_classes": options.get("num_classes")}
        training = {"images": _STEPS * ROWS, "batch_size": ROWS, "accumulation": accumulation}
        return {
            "name": "contract",
            "teacher": {"name": name, **options} if objective.needs_teacher else None,
            "student": student,
            "objective": {"name": self.component, **self.options},
            "source": source,
            "codec": self.codec or ("pixels" if digits or self.source is not None else "states"),
            "training": {**training, "optimizer": {"learning_rate": 1e-3}},
            "runtime": {"precision": precision, "device": "cpu"},
            "evaluation": {"enabled": False},
        }

    def _gradients(self, offset: float) -> Tensor:
        """(batches, parameters) gradients of the student's loss, ``offset`` away from the exact map, in float64."""
        mean, std = torch.tensor(_MEAN, dtype=torch.float64), torch.tensor(_STD, dtype=torch.float64)
        teacher, rows = GaussianTeacher(mean, std), []
        for batch in range(_BATCHES):
            student = GaussianStudent(mean + offset, std + offset)
            objective = self.objective(precision="float64")
            if not isinstance(student, objective.requires):
                self.skip(f"it trains a {objective.requires.__name__}, of which there is no exact one here")
            try:
                losses = self._exact_losses(objective, teacher, student, batch * _EXACT_ROWS)
            except FreeflowError as error:
                self.skip(f"it does not train on a plain Gaussian: {error}")
            if "student" not in losses:
                self.skip("its student has no loss at this step")
            found = torch.autograd.grad(losses["student"].per_sample.mean(), list(student.parameters()))
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    def _exact_losses(
        self, objective: Objective, teacher: GaussianTeacher, student: Student, first: int
    ) -> dict[str, Loss]:
        """Losses on samples ``first`` ... of the exact Gaussian, with copies of the roles the objective asks for."""
        draws = draws_of(_EXACT_ROWS, torch.float64, seed=11, first=first)
        x = teacher.mean + teacher.std * draws.noise("exact-data", teacher.sample_shape)
        models = {"student": Model(student, student)}
        for name, role in objective.roles(student, teacher).items():
            network = copy.deepcopy(role.network).double().requires_grad_(role.trainable)
            models[name] = Model(network, network)
        batch = Batch(x if objective.needs_data else None, None)
        for step in range(_MOST_STEPS):
            progress = Progress(images=500, step=step, total_images=1_000, updates=dict.fromkeys(models, step))
            losses = dict(objective.losses(Models(models, teacher), batch, draws, progress, LocalMeans()))
            if "student" in losses:
                break
        return losses


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}

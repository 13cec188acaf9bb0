"""A one-file plugin of small components of seven kinds, each with one mistake by option; with none they are right."""

import itertools

import torch
from pydantic import Field

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Codec, Evaluator, Source, Tracker, VelocitySampler, Verifier
from freeflow_core.plugin import Component, hookimpl
from freeflow_core.testing.exact import GaussianStudent
from freeflow_core.types import Batch, Samples


class Config(ComponentConfig):
    """What is wrong."""

    mistake: str = Field("none", description="The mistake; none: nothing.")


class Undescribed(Config):
    """An option that says nothing of itself."""

    silent: int = 1


class Mistaken:
    """Keeps the mistake."""

    def __init__(self, config):
        self.mistake = config.mistake


class BrokenStudent(GaussianStudent):
    """An exact student."""

    mistake = "none"

    @classmethod
    def from_config(cls, config, context):
        built = cls(torch.tensor([0.5, -1.0]), torch.tensor([0.6, 1.4]))
        built.mistake, built.shift = config.mistake, 0.0
        if config.mistake == "unsaved":
            built.shift = 1.0
        return built

    shift = 0.0

    def forward(self, x_t, t, s, condition, guidance):
        if self.mistake == "in-place":
            x_t += 1
        if self.mistake == "state":
            self.calls = getattr(self, "calls", 0) + 1
            x_t = x_t * self.calls
        if self.mistake == "random" and not self.training:
            x_t = x_t + torch.randn_like(x_t)
        if self.mistake == "float64":
            x_t = x_t.double()
        u = super().forward(x_t, t, s, condition, guidance)
        if self.mistake == "batch-in-training" and self.training:
            u = u - u.mean(0)
        if self.mistake == "unsaved":
            u = u + self.shift
        if self.mistake == "batch":
            u = u - u.mean(0)
        return u.detach() if self.mistake == "detached" else u

    def jump(self, output, x_t, t, s):
        if self.mistake == "outside":
            return super().jump(output, x_t, t, s) + 0 * self.mean
        return super().jump(-output if self.mistake == "sign" else output, x_t, t, s)


class BrokenSampler(Mistaken, VelocitySampler):
    """Euler."""

    last = 0.0

    @torch.no_grad()
    def sample(self, model, z, grid, condition, guidance, draws=None, on_step=None):
        times = grid.tolist()
        if self.mistake == "in-place":
            z.mul_(1.01)
        if self.mistake == "state":
            z = z + getattr(self, "last", 0)
            BrokenSampler.last = 0.1 + BrokenSampler.last
        if any(a <= b for a, b in itertools.pairwise(times)) and self.mistake != "any-grid":
            raise ValueError("the grid must fall")
        x, asked = z, 0.0
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            if self.mistake == "rows":
                x = x - 0.1 * x.mean(0)
            now = torch.full((len(x),), t, dtype=torch.float64)
            weight = guidance.at(now)
            x = x + (t - s if self.mistake == "direction" else s - t) * model.guided_velocity(x, now, condition, weight)
            if self.mistake == "random":
                x = x + 1e-3 * torch.randn_like(x)
            asked += 1 if self.mistake == "count" else 1 + float((weight != 1).double().mean())
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.double() if self.mistake == "dtype" else x, asked)


class BrokenCodec(Mistaken, Codec):
    """Pixels."""

    def encode(self, images):
        x = images.float() / 127.5 - 1
        return x.double() if self.mistake == "dtype" else x

    def decode(self, x):
        values = (x.float() + (0.7 if self.mistake == "shift" else 1)) * 127.5
        return (values % 256 if self.mistake == "wrap" else values.round().clamp(0, 255)).to(torch.uint8)


class BrokenSource(Mistaken, Source):
    """Image i shows i."""

    image_shape = (1, 4, 4)
    num_classes = 5

    def batches(self, start, batch_size, rank, world_size):
        first = 0 if self.mistake == "start" else start
        block = 0 if self.mistake == "rank" else rank
        stride = 1 if self.mistake == "rank" else world_size
        while True:
            index = first + block * batch_size + torch.arange(batch_size)
            images = (index % 251).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
            labels = index % 5 + (1 if self.mistake == "labels" else 0)
            if self.mistake == "random":
                images = torch.randint_like(images, 0, 255)
            yield Batch(images[:-1] if self.mistake == "rows" else images, labels)
            block += stride

    def held_out(self):
        return None


class BrokenEvaluator(Mistaken, Evaluator):
    """Mean grey value."""

    total, count = 0.0, 0

    def prepare(self, context):
        pass

    def reset(self, subject):
        if self.mistake != "reset":
            self.total, self.count = 0.0, 0

    def update(self, batch):
        mean = float(batch.images.float().mean())
        self.total += mean if self.mistake == "batches" else mean * len(batch.images)
        self.count += 1 if self.mistake == "batches" else len(batch.images)
        if self.mistake == "batches":
            self.total += len(batch.images) ** 2
        if self.mistake == "writes":
            batch.images.zero_()

    def compute(self):
        return {"grey": float("nan") if self.mistake == "nan" else self.total / self.count}


class BrokenVerifier(Mistaken, Verifier):
    """Smoothness: noise scores low."""

    def prepare(self, context):
        pass

    def score(self, images, condition):
        rough = images.float().diff(dim=3).square().flatten(1).mean(1) - images.float().flatten(1).var(1)
        score = rough if self.mistake == "sign" else -rough
        if self.mistake == "batch":
            score = score - score.mean()
        return score.mean() if self.mistake == "shape" else score


ARRIVED: set[tuple[str, int]] = set()


class BrokenTracker(Mistaken, Tracker):
    """Keeps what arrived in this process."""

    def store(self, run):
        return "nowhere"

    def options(self, run):
        return {"folder": {1, 2}} if self.mistake == "options" else {"folder": "here"}

    def open(self, run, journal, notes, since):
        self._key = run.key
        return since is not None

    def send_metrics(self, records, notes):
        if self.mistake == "names" and any(" " in name for record in records for name in record.values):
            raise ValueError("what a name")
        before = len(ARRIVED)
        ARRIVED.update((self._key, record.images) for record in records)
        return len(records) if self.mistake == "twice" else len(ARRIVED) - before

    def send_artifact(self, artifact):
        return True

    def finish(self, status, time):
        pass


def _offers(kind):
    def offer():
        config = "Undescribed" if kind == "codec" else "Config"
        return [Component(f"broken-{kind}", f"{__name__}:Broken{kind.capitalize()}", f"{__name__}:{config}", "Broken")]

    return hookimpl(offer)


freeflow_students, freeflow_samplers, freeflow_codecs = _offers("student"), _offers("sampler"), _offers("codec")
freeflow_sources, freeflow_trackers = _offers("source"), _offers("tracker")
freeflow_evaluators, freeflow_verifiers = _offers("evaluator"), _offers("verifier")

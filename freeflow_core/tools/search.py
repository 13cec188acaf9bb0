"""Best-of-N: the one-step student screens noises for the teacher; on disk, and beside plain sampling of that cost.

Ma et al. 2025 search over noises with the sampler itself; FreeFlow (Tong et al. 2025) with its student, whose single
step shows where the teacher's many would lead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import final

import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import comparison_image, save_image
from freeflow_core.evaluation.report import markdown_table
from freeflow_core.evaluation.sampling import Extract, Generator, SampleBatch, blocks, crew_batches, make_generator
from freeflow_core.evaluation.scores import Evaluation
from freeflow_core.files import write_text
from freeflow_core.interfaces import EvaluationContext, FlowMapSampler, VelocitySampler, Verifier
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.tools.sample_files.files import gather, write_npz

SEARCH, SAME_STEPS, SAME_EVALUATIONS = "search", "same steps", "same evaluations"
OnSearched = Callable[[int, int], None]
"""``on_progress(done, total)`` samples."""

_PICTURE_COLUMNS = 10


@final
class BestOfN:
    """The teacher's samples from the best of N noises each, judged by the student's one step from them.

    Sample i screens the noises of the indices i N ... (i + 1) N - 1, so that it depends on the seed, i and N alone.
    Its evaluations are the N of the student and all of the teacher's, unconditional ones included; the verifier's own
    network is not counted. With N = 1 nothing is screened, and nothing but the teacher is paid for.

    Args:
        screen: a one-step generator of the student.
        finish: a generator of the teacher, with the same seed.
        verifier: prepared.
        candidates: N.
        temperature: T; 0 takes the best candidate, above 0 one is drawn with probability proportional to exp(score /
            T): with a log density ratio as the score, T = 1 is sampling by importance (Rubin 1988).
    """

    def __init__(
        self, screen: Generator, finish: Generator, verifier: Verifier, candidates: int, temperature: float = 0.0
    ) -> None:
        if candidates < 1:
            raise ConfigError(f"The number of candidates must be at least 1, got {candidates}.")
        if screen.sample_shape != finish.sample_shape:
            raise ConfigError(
                f"The student makes states of shape {screen.sample_shape}, the teacher {finish.sample_shape}. Search "
                "with the teacher that the student was distilled from."
            )
        assert isinstance(screen.sampler, FlowMapSampler)
        assert isinstance(finish.sampler, VelocitySampler)
        self._screen, self._finish, self._verifier, self._candidates = screen, finish, verifier, candidates
        self._temperature = temperature

    def batches(self, start: int, num: int, batch_size: int, extract: Extract | None = None) -> Iterator[SampleBatch]:
        """See :class:`SampleStream`; at most ``batch_size`` states are held at once."""
        draw = partial(self.batch, batch_size=batch_size)
        return crew_batches(self._finish.crew, draw, blocks(start, num, batch_size), extract)

    def batch(self, index: Tensor, batch_size: int) -> SampleBatch:
        chosen, _, seconds = self.screen(index, batch_size)
        batch = self._finish.batch(index, chosen)
        paid = self._candidates if self._candidates > 1 else 0
        return replace(batch, num_evaluations=batch.num_evaluations + paid, seconds=batch.seconds + seconds)

    def screen(self, index: Tensor, batch_size: int) -> tuple[Tensor, Tensor, float]:
        """The noise chosen for each of ``index`` (n,), all candidates' scores (n, N), and the seconds it took."""
        noises = index[:, None] * self._candidates + torch.arange(self._candidates)
        if self._candidates == 1:
            return noises[:, 0], torch.zeros(len(index), 1, dtype=torch.float64), 0.0
        samples = index.repeat_interleave(self._candidates)
        scores, seconds = [], 0.0
        for rows, noise in zip(
            torch.split(samples, batch_size), torch.split(noises.flatten(), batch_size), strict=True
        ):
            shown = self._screen.batch(rows, noise)
            scores.append(self._verifier.score(shown.images, shown.condition).cpu())
            seconds += shown.seconds
        table = torch.cat(scores).reshape(noises.shape)
        ranked = table
        if self._temperature > 0:  # the greatest of scores with Gumbel noise is such a draw
            uniform = PhiloxDraws(self._screen.seed, noises.flatten()).uniform("choice").reshape(noises.shape)
            ranked = table / self._temperature - torch.log(-torch.log(uniform))
        return noises.gather(1, ranked.argmax(1, keepdim=True))[:, 0], table, seconds


@dataclass(frozen=True)
class SearchRow:
    """One way of sampling: ``steps`` of the teacher, and each score's mean and deviation over the seeds."""

    steps: int
    scores: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class SearchResult:
    """Samples on disk, evaluations per sample, and the comparison's rows by name (none when it was not asked for)."""

    folder: Path
    files: Mapping[str, Path]
    evaluations: float
    rows: Mapping[str, SearchRow] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Search:
    """Draws samples by best-of-N, and scores them beside plain sampling.

    Args:
        config: its ``evaluation`` says how many samples, which evaluators, and where guidance is on.
        candidates: N noises a sample.
        sampler, steps, guidance_weight: the teacher's, after the search.
        student_guidance: the student's input while it screens.
        temperature: of the choice, see :class:`BestOfN`.
    """

    config: RunConfig
    builder: Builder
    context: EvaluationContext
    verifier: Verifier
    candidates: int
    sampler: ComponentChoice
    steps: int
    guidance_weight: float
    student_guidance: float
    temperature: float = 0.0

    def __post_init__(self) -> None:
        self.verifier.prepare(self.context)

    def stream(self, seed: int) -> BestOfN:
        screen = self._generator(ComponentChoice(name="one-step"), 1, self.student_guidance, seed)
        return BestOfN(screen, self.plain(seed), self.verifier, self.candidates, self.temperature)

    def plain(self, seed: int, steps: int | None = None) -> Generator:
        """The teacher alone, in ``steps`` (None: as many as after the search)."""
        return self._generator(self.sampler, steps or self.steps, self.guidance_weight, seed)

    def rows(self, seeds: Sequence[int]) -> dict[str, SearchRow]:
        """The search, plain sampling with the same steps, and with as many evaluations; mean over seeds."""
        steps = dict.fromkeys((SEARCH, SAME_STEPS, SAME_EVALUATIONS), self.steps)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
        for seed in seeds:
            # Each row is compared with real images, so no many-step reference is drawn.
            config = self.config.model_copy(
                update={"evaluation": self.config.evaluation.model_copy(update={"seed": seed})}
            )
            evaluation = Evaluation(config, self.builder, self.context)
            searched = evaluation.row(SEARCH, self.stream(seed))
            plain = evaluation.row(SAME_STEPS, self.plain(seed))
            ratio = searched["evaluations"] / plain["evaluations"]
            steps[SAME_EVALUATIONS] = max(1, int(ratio * self.steps + 1e-9))  # the most that cost no more
            longer = evaluation.row(SAME_EVALUATIONS, self.plain(seed, steps[SAME_EVALUATIONS]))
            for name, scores in zip(steps, (searched, plain, longer), strict=True):
                results[name].append(scores)

        def spread(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
            return {key: (mean(row[key] for row in rows), pstdev(row[key] for row in rows)) for key in rows[0]}

        return {name: SearchRow(steps[name], spread(rows)) for name, rows in results.items()}

    def write_samples(
        self, output: Path, num: int, batch_size: int, seed: int, on_progress: OnSearched
    ) -> SearchResult:
        """``samples.npz`` (arr_0 uint8 NHWC, arr_1 labels), ``search.json`` and a picture beside unsearched samples."""
        stream = self.stream(seed)

        def told() -> Iterator[SampleBatch]:
            for batch in stream.batches(0, num, batch_size):
                yield batch
                on_progress(int(batch.index[-1]) + 1, num)

        drawn = gather(told())
        assert drawn.samples is not None
        files = {"samples": output / "samples.npz", "search": output / "search.json"}
        arrays = {"arr_0": drawn.samples} | ({} if drawn.labels is None else {"arr_1": drawn.labels})
        index = torch.arange(min(num, _PICTURE_COLUMNS))
        chosen, scores, _ = stream.screen(index, batch_size)
        described = {
            "candidates": self.candidates,
            "steps": self.steps,
            "guidance_weight": self.guidance_weight,
            "temperature": self.temperature,
            "seed": seed,
            "num": num,
            "evaluations_per_sample": drawn.evaluations / num,
            "first_samples": [
                {"sample": i, "noise": int(chosen[i]), "scores": scores[i].tolist()} for i in range(len(index))
            ],
        }
        picture: Tensor | None = None
        if drawn.samples.ndim == 4:
            unsearched = self.plain(seed).batch(index, index * self.candidates)
            best = torch.from_numpy(drawn.samples[: len(index)]).permute(0, 3, 1, 2)
            rows = [("first noise", unsearched.images.cpu()), (f"best of {self.candidates}", best)]
            shown = index if drawn.labels is None else drawn.labels[: len(index)]
            files["picture"] = output / "search.png"
            picture = comparison_image(rows, [str(label) for label in shown.tolist()])

        def write() -> None:
            write_npz(files["samples"], num, {name: [array] for name, array in arrays.items()})
            write_text(files["search"], json.dumps(described, indent=1) + "\n")
            if picture is not None:
                save_image(picture, files["picture"])

        self.builder.crew.from_main(write)
        return SearchResult(output, files, drawn.evaluations / num)

    def _generator(self, sampler: ComponentChoice, steps: int, weight: float, seed: int) -> Generator:
        evaluation = self.config.evaluation.model_copy(update={"guidance_weight": weight, "seed": seed})
        return make_generator(evaluation, self.builder, self.context, sampler, steps)


def write_rows(rows: Mapping[str, SearchRow], config: RunConfig, output: Path) -> dict[str, Path]:
    """The comparison as JSON and Markdown."""
    files = {"comparison": output / "comparison.json", "table": output / "comparison.md"}
    values = {name: {"steps": row.steps, **{k: list(v) for k, v in row.scores.items()}} for name, row in rows.items()}
    write_text(files["comparison"], json.dumps(values, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row.scores))

    def cell(mean: float, deviation: float) -> str:
        return f"{mean:.4g}" + (f" ± {deviation:.2g}" if deviation else "")

    lines = [
        [name, str(row.steps), *(cell(*row.scores[key]) if key in row.scores else "-" for key in columns)]
        for name, row in rows.items()
    ]
    note = f"{config.evaluation.num_samples} samples a row; mean and deviation over seeds."
    write_text(files["table"], "\n".join([*markdown_table(["", "steps", *columns], lines), "", note, ""]))
    return files

"""``report.md``: what was run, what came out, and what to do next."""

from collections.abc import Iterable, Mapping, Sequence

from freeflow_core.config import EvaluationConfig, RunConfig
from freeflow_core.config.run import row_title
from freeflow_core.evaluation.scores import COST_COLUMNS
from freeflow_core.interfaces.evaluator import score_texts
from freeflow_core.types import Scores


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def score_cells(scores: Scores, evaluation: EvaluationConfig | None) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of scores, costs first; a dash where a score has no meaning."""
    texts = {name: score_texts(row, "{:.4g}".format) for name, row in scores.items()}
    named = dict.fromkeys(key for row in texts.values() for key in row)
    columns = [c for c in COST_COLUMNS if c in named] + [c for c in named if c not in COST_COLUMNS]
    rows = [[row_title(name, evaluation), *(row.get(c, "-") for c in columns)] for name, row in texts.items()]
    return ["", *columns], rows


def score_table(scores: Scores, config: RunConfig) -> list[str]:
    """Rows of scores as a Markdown table."""
    return markdown_table(*score_cells(scores, config.evaluation))


def write_report(
    config: RunConfig,
    command: str,
    scores: Scores,
    *,
    load_report: str | None,
    facts: Mapping[str, str],
    pictures: Mapping[str, str],
    looks: Iterable[str] = (),
    columns: Iterable[str] = (),
) -> str:
    """The report as Markdown.

    Args:
        pictures: paths beside it, by title.
        looks: comparisons of single steps.
        columns: what the classes of the pictures' columns are called, such as their prompts.
    """
    teacher = f"`{config.teacher.name}`" if config.teacher else "none"
    lines = [
        f"# {config.name}",
        "",
        f"`freeflow {command}`: teacher {teacher}, student `{config.student.name}`, "
        f"objective `{config.objective.name}`, seed {config.seed}.",
        "",
    ]
    if load_report:
        lines += [f"The student started from the teacher: {load_report}.", ""]
    lines += [*markdown_table(["", ""], facts.items()), ""]
    for look in looks:
        lines += [look, ""]
    if scores:
        lines += ["## Scores", "", *score_table(scores, config), "", legend(config), ""]
    for title, path in pictures.items():
        lines += [f"## {title}", "", f"![{title}]({path})", ""]
    if pictures and (named := [f"{number}. {name}" for number, name in enumerate(columns)]):
        lines += ["The columns, from the left:", "", *named, ""]
    lines += ["## Configuration", "", "Every setting, defaults included, is in [config.yaml](config.yaml).", ""]
    return "\n".join(lines)


def legend(config: RunConfig) -> str:
    """What the table of scores shows, in a paragraph."""
    evaluation = config.evaluation
    guidance = "unguided" if evaluation.guidance_weight == 1 else f"guided at {evaluation.guidance_weight:g}"
    return (
        f"{evaluation.samples_a_row}, evaluation seed {evaluation.seed}, {guidance}. `evaluations` counts "
        "network passes per sample, unconditional ones included. `_data` scores compare with held-out images, "
        "`_teacher` scores with the many-step teacher's own samples from other noise. Behind ± is the standard error "
        "of these samples; how much training varies takes several seeds."
    )

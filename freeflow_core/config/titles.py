"""Rows of scores as people name them: in the terminal, the report and the pictures."""

from __future__ import annotations

import re

from freeflow_core.config.run import EvaluationConfig


def row_title(row: str, evaluation: EvaluationConfig | None = None) -> str:
    """A row of scores as people name it; ``evaluation`` fills in the steps. Unknown rows keep their name."""
    many = f"{evaluation.reference_steps} steps" if evaluation else "many steps"
    jump = (
        f"student jump to t={evaluation.jump_to:g}, then teacher, {_steps(evaluation.jump_steps)}"
        if evaluation
        else "student jump, then teacher"
    )
    titles = {
        "data": "training images (floor)",
        "teacher": f"teacher, {many}",
        "student": "student, 1 step",
        "student_jump": jump,
    }
    if match := re.fullmatch(r"(\w+?)_(\d+)_steps?", row):
        return f"{match[1].replace('_', ' ')}, {_steps(int(match[2]))}"
    return titles.get(row, row.replace("_", " "))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"

"""One training step reads through few files: trainer, objective, student and teacher, math."""

from step_path import step_path


def test_the_default_step_stays_in_few_files():
    path = step_path("digits", ["runtime.threads=1"])
    assert "plugins/freeflow_predictor_corrector/freeflow.py" in path.files
    assert len(path.files) <= 14, path.files
    assert len(path.moves) <= 60, path.moves

import logging

import pytest
from freeflow_cli.main import MessageHandler


@pytest.fixture
def logger():
    logger = logging.Logger("freeflow.test", logging.INFO)
    logger.addHandler(MessageHandler())
    return logger


def test_cli_log_lines_go_to_stderr_as_one_line_each(logger, capsys):
    logger.warning("tracker %s failed:\n[no answer]", "x")
    logger.info("open http://here/")
    output, error = capsys.readouterr()
    assert output == ""
    assert error == "Warning: tracker x failed: [no answer]\nopen http://here/\n"


def test_cli_log_is_silent_in_other_processes(logger, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    logger.warning("oh")
    assert capsys.readouterr().err == ""

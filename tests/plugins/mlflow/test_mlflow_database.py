"""MLflow's sqlite file is whole or not there; a broken one is told from one that is busy."""

import sqlite3

import pytest
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.tracker import MlflowTracker, make_database
from mlflow.store.tracking import sqlalchemy_store

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.journal import Journal
from freeflow_core.types import RunInfo


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_kill_on_the_way_leaves_no_database(tmp_path, store_uri, monkeypatch):
    path, whole = tmp_path / "mlflow.db", store_uri.removeprefix("sqlite:///")

    class Half:
        def __init__(self, uri, artifacts):
            with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
                database.execute("create table experiments (experiment_id integer)")
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy_store, "SqlAlchemyStore", Half)
        with pytest.raises(Killed):
            make_database(path)
    assert not path.exists()
    left = tmp_path / ".mlflow.db.0a1b2c3d.partial-journal"
    left.write_bytes(b"of a kill")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", lambda uri, artifacts: Copied(whole, uri))
    make_database(path)
    assert path.exists()
    assert not left.exists()


class Copied:
    """A store whose tables are copied rather than made, which takes seconds."""

    def __init__(self, whole, uri):
        with sqlite3.connect(whole) as source, sqlite3.connect(uri.removeprefix("sqlite:///")) as copy:
            source.backup(copy)
        self.engine = self

    def dispose(self):
        pass


def opened(path):
    run = RunInfo("run", "distill", path.parent / "run", {}, "")
    MlflowTracker(MlflowConfig(uri=f"sqlite:///{path.as_posix()}")).open(run, Journal(run.folder), {}, None)


@pytest.mark.parametrize("damage", ["half made", "no database"])
def test_a_broken_database_is_named_with_what_to_do(tmp_path, store_uri, damage):
    path = tmp_path / "mlflow.db"
    if damage == "no database":
        path.write_bytes(b"something else" * 100)
    else:  # as a kill between two migrations left it
        Copied(store_uri.removeprefix("sqlite:///"), f"sqlite:///{path}")
        with sqlite3.connect(path) as database:
            database.execute("update alembic_version set version_num = '451aebb31d03'")
            database.execute("drop table webhooks")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"mlflow\.db.*mlflow-sync"):
        opened(path)
    assert path.exists()
    assert damage == "half made" or path.read_bytes() == before

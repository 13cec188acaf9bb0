"""Each finding of `freeflow doctor`, with what it looks at replaced."""

import importlib.metadata
import sqlite3
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from plugin_helpers import plugin
from weights_server import Answer

from freeflow_core.plugin import Component, Manager
from freeflow_core.tools import doctor

JOINED = {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No accelerate configuration, and a folder of its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only(checks, name):
    (found,) = [check for check in checks if check.name == name]
    return found


def launched(nowhere, **variables):
    return only(doctor.check_launch({"HF_HOME": str(nowhere / "hf"), **variables}), "distributed launch")


def test_doctor_names_packages_that_are_missing_or_out_of_range(monkeypatch):
    found = {"numpy": "1.20"}

    def version(name):
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    needed = Requirement("numpy>=1.26")
    old = doctor.check_package("numpy", needed)
    assert (old.status, old.detail[:10]) == ("warning", "1.20, but ")
    assert doctor.check_package("numpy", None).status == "ok"
    assert doctor.check_package("torch", None).status == "error"
    optional = doctor.check_package("diffusers", None, "latents")
    assert (optional.status, optional.detail) == ("ok", "not installed; needed for latents")


def test_doctor_names_deprecated_variables():
    checks = list(doctor.check_versions({"TRANSFORMERS_CACHE": "x", "HOME": "y"}))
    (check,) = [check for check in checks if check.name.startswith("variable")]
    assert (check.name, check.status) == ("variable TRANSFORMERS_CACHE", "warning")
    assert "HF_HOME" in check.detail


def test_doctor_tells_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    check = only(doctor.check_hardware(), "device")
    assert check.status == "warning"
    assert "driver 550.1" in check.detail
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert only(doctor.check_hardware(), "device").detail != check.detail, "the driver's fault, not the build's"
    monkeypatch.setattr(doctor, "driver_version", lambda: None)
    assert only(doctor.check_hardware(), "device").status == "ok"


@pytest.mark.parametrize(
    ("free", "capability", "device", "bf16"), [(70, (9, 0), "ok", "ok"), (3, (7, 5), "warning", "warning")]
)
def test_doctor_describes_gpus(monkeypatch, free, capability, device, bf16):
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "mem_get_info": (free * 2**30, 80 * 2**30),
        "get_device_capability": capability,
        "get_device_name": "A GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.1")
    monkeypatch.setattr(
        doctor, "_precision", lambda device, name, dtype, real=doctor._precision: real("cpu", name, dtype)
    )
    checks = list(doctor.check_hardware())
    assert only(checks, "device cuda:0").status == device
    assert f"80 GiB, {free} free" in only(checks, "device cuda:0").detail
    assert "550.1" in only(checks, "CUDA").detail
    assert ("supported" in only(checks, "tf32").detail) == (bf16 == "ok")


def test_doctor_says_which_kernels_a_derivative_can_use(monkeypatch):
    checks = list(doctor.check_attention())
    assert "math" in only(checks, "attention kernels").detail
    assert "math attention" in only(checks, "derivative=forward-mode").detail
    real = doctor._attends
    without = lambda *args, forward_mode=False: not forward_mode and real(*args)  # noqa: E731
    monkeypatch.setattr(doctor, "_attends", without)
    check = only(doctor.check_attention(), "derivative=forward-mode")
    assert (check.status, "derivative=central" in check.detail) == ("warning", True)
    monkeypatch.setattr(doctor, "_attends", lambda *args, **_: False)
    assert only(doctor.check_attention(), "attention kernels").status == "error"


def test_doctor_counts_processes_that_joined(nowhere):
    assert launched(nowhere).detail == "1 process"
    assert launched(nowhere, **JOINED).detail == "4 processes"
    assert launched(nowhere, WORLD_SIZE="4").status == "warning"


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_doctor_warns_when_a_launcher_started_processes_that_do_not_join(nowhere, variable):
    own = {"SLURM_PROCID": "0"} if variable == "SLURM_NTASKS" else {}
    check = launched(nowhere, **{variable: "2"}, **own)
    assert check.status == "warning"
    assert variable in check.detail
    assert launched(nowhere, **{variable: "4"}, **own, **JOINED).status == "ok"
    assert launched(nowhere, **{variable: "1"}, **own).status == "ok"
    assert launched(nowhere, SLURM_NTASKS="8").status == "ok", "a shell on an allocation is no launch"


def test_doctor_warns_when_accelerate_started_one_of_two(nowhere):
    file = nowhere / "hf" / "accelerate" / "default_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("num_processes: 2\n", "utf-8")
    check = launched(nowhere, ACCELERATE_MIXED_PRECISION="no")
    assert check.status == "warning"
    assert "asks for 2" in check.detail
    variables = {"HF_HOME": str(nowhere / "hf")}
    assert only(doctor.check_launch(variables), "accelerate configuration").status == "ok"
    file.write_text("num_processes: 8\n", "utf-8")
    assert only(doctor.check_launch({**variables, **JOINED}), "accelerate configuration").status == "warning"
    file.write_text("[broken", "utf-8")
    assert doctor.configured_processes(variables) is None


def test_doctor_refuses_more_processes_than_gpus(monkeypatch, nowhere):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number, found in (("4", ["error"]), ("2", [])):
        checks = list(doctor.check_launch({**JOINED, "LOCAL_WORLD_SIZE": number}))
        assert [check.status for check in checks if check.name == "processes and GPUs"] == found


def test_doctor_tells_full_and_read_only_disks(monkeypatch, nowhere):
    monkeypatch.setenv("FREEFLOW_CACHE", str(nowhere / "cache"))
    assert [check.status for check in doctor.check_storage()] == ["ok", "ok"]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert [check.status for check in doctor.check_storage()] == ["warning", "warning"]

    def refuse(**_):
        raise PermissionError("read-only")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    runs, cache = doctor.check_storage()
    assert (runs.status, "--output" in runs.detail) == ("error", True)
    assert (cache.status, "FREEFLOW_CACHE" in cache.detail) == ("warning", True)
    assert not (nowhere / "cache").exists()
    assert not (nowhere / "runs").exists()


def tracked(uri):
    return doctor.check_tracking({} if uri is None else {"MLFLOW_TRACKING_URI": uri})


def test_doctor_asks_the_mlflow_server(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for path, status in (("/health", 200), ("/private/health", 401), ("/broken/health", 500)):
        server.serve(path, Answer(status=status))
    assert tracked(server.address).status == "ok"
    assert "was not tried" in tracked(f"{server.address}/private").detail
    broken = tracked(f"{server.address.replace('//', '//me:secret@')}/broken/")
    assert broken.status == "warning"
    assert "secret" not in broken.detail
    monkeypatch.setattr(doctor, "_SECONDS", 0.5)
    gone = tracked("http://127.0.0.1:9")
    assert gone.status == "warning"
    assert "mlflow-sync" in gone.detail


def test_doctor_looks_at_an_mlflow_database_without_making_one(nowhere):
    assert tracked(None).status == "ok"
    assert not list(nowhere.iterdir())
    file = nowhere / "store.db"
    connection = sqlite3.connect(file)
    connection.execute("create table runs (name text)")
    connection.commit()
    connection.close()
    assert tracked(f"sqlite:///{file}").detail == str(file)
    file.write_bytes(b"no database" * 100)
    assert tracked(f"sqlite:///{file}").status == "warning"
    assert tracked("databricks").status == "ok"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.module:Class", "cannot be imported"),
        ("freeflow_core.interfaces:Student", "is no freeflow_core.interfaces.Teacher"),
        ("freeflow_core.testing.exact:GaussianTeacher", None),
    ],
)
def test_doctor_imports_every_component(target, reason):
    manager = Manager()
    teacher = Component("mine", target, "freeflow_core.config:ComponentConfig", "A teacher.")
    manager.register(plugin(teachers=[teacher]), "mine", "my-package", "1.0")
    checks = list(doctor.check_plugins(manager))
    assert only(checks, "plugin mine").status == "ok"
    assert ("its component can be imported" in only(checks, "plugin mine").detail) == (reason is None)
    assert [reason in check.detail for check in checks if check.name == "teacher mine"] == [True] * (reason is not None)
    assert {check.status for check in checks} == ({"ok", "error"} if reason else {"ok"})


def test_a_check_that_fails_is_a_finding_and_stops_no_other(monkeypatch):
    def ill():
        raise RuntimeError("broken\nbone")

    monkeypatch.setattr(doctor, "check_storage", ill)
    checks = doctor.diagnose(Manager())
    assert only(checks, "storage").detail == "could not be looked at: RuntimeError: broken bone"
    assert {"python", "MLflow", "plugin API"} <= {check.name for check in checks}

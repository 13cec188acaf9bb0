import shlex


def test_cli_distill_without_options_runs_the_mnist_preset(freeflow, api, manager):
    result = freeflow("distill")
    assert result.exit_code == 0, result.output
    ((command, arguments),) = api.calls
    assert command == "distill"
    assert arguments["config"].name == "mnist"
    assert (arguments["output"], arguments["resume"], arguments["manager"]) == (None, False, manager)


def test_cli_distill_passes_every_option(freeflow, api, tmp_path):
    folder = tmp_path / "mine"
    result = freeflow(
        "distill", "--teacher", "stern", "--student", "lazy", "--objective", "agree", "--seed", "9",
        "--set", "training.images=64", "--output", str(folder), "--resume",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = api.calls[0][1]
    config = arguments["config"]
    assert (config.teacher.name, config.student.name, config.seed) == ("stern", "lazy", 9)
    assert config.training.images == 64
    assert (arguments["output"], arguments["resume"]) == (folder, True)


def test_cli_pretrain_runs_its_own_preset(freeflow, api):
    assert freeflow("pretrain", "--source", "prior").exit_code == 0
    command, arguments = api.calls[0]
    assert (command, arguments["config"].name) == ("pretrain", "digits-teacher")
    assert arguments["config"].source.name == "prior"
    assert freeflow("pretrain", "--teacher", "wise").exit_code == 2


def test_cli_resume_by_folder_goes_on_with_its_configuration(freeflow, api, tmp_path):
    shown = freeflow("config", "show", "--set", "training.images=77", "--student", "lazy")
    (tmp_path / "config.yaml").write_text(shown.stdout, "utf-8")
    assert freeflow("distill", "--output", str(tmp_path), "--resume").exit_code == 0
    assert freeflow("distill", "--output", str(tmp_path), "--resume", "--preset", "digits").exit_code == 0
    assert freeflow("distill", "--output", str(tmp_path)).exit_code == 0
    assert [arguments["config"].training.images for _, arguments in api.calls] == [77, 6400, 6400]


def test_cli_result_shows_scores_files_and_what_is_next(freeflow, api):
    lines = freeflow("distill").stdout.splitlines()
    text = "\n".join(lines)
    assert text.index("teacher,") < text.index("student,")
    assert ["fid", "10.25", "12.5"] in [line.split() for line in lines]
    assert "12 tensors taken" in text
    assert "Finished after 1:15, 3.00 GiB of memory at most." in lines
    assert f"  student  {api.folder / 'student.safetensors'}" in lines
    assert f"  freeflow sample --run {api.folder}" in lines
    assert "mlflow" not in text


def test_cli_result_names_the_local_mlflow_store(freeflow, api):
    api.folder.mkdir(parents=True)
    assert "mlflow" not in freeflow("distill", "--set", "trackers=[mlflow]").stdout
    (api.folder.parent / "mlflow.db").touch()
    shown = freeflow("distill", "--set", "trackers=[mlflow]").stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{api.folder.parent.resolve()}/mlflow.db" in shown


def test_cli_stopped_run_says_how_to_go_on(freeflow, api):
    api.status, api.scores = "stopped", {}
    shown = freeflow("distill").stdout
    assert f"freeflow distill --resume --output {api.folder} --set training.stop_at_images=null" in shown
    assert f"freeflow evaluate --run {api.folder}" in shown


def test_cli_other_processes_are_silent(freeflow, api, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = freeflow("distill")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert len(api.calls) == 1


def test_cli_dry_run_prints_the_plan_and_trains_nothing(freeflow, api):
    result = freeflow("distill", "--dry-run")
    assert result.exit_code == 0
    assert [name for name, _ in api.calls] == ["plan"]
    assert "292 tensors taken" in result.stdout
    assert "Warning: no GPU was found" in result.stderr


def test_cli_dry_run_plans_for_the_device_named(freeflow, api):
    named = ("--device-memory", "80", "--processes", "8", "--rate", "250")
    assert freeflow("distill", "--dry-run", *named).exit_code == 0
    ((_, arguments),) = api.calls
    given = ("device_memory", "num_processes", "rate", "measure")
    assert [arguments[name] for name in given] == [80.0, 8, 250.0, False]
    for wrong in (named, ("--dry-run", "--measure", "--rate", "2"), ("--dry-run", "--measure", "--device-memory", "2")):
        assert freeflow("distill", *wrong).exit_code == 2
    assert len(api.calls) == 1


def test_cli_dry_run_proposes_a_line_to_paste(freeflow, api):
    api.free = 2**30
    chosen = ("--teacher", "stern", "--seed", "9", "--set", "name=a-b")
    lines = freeflow("distill", *chosen, "--dry-run").stdout.splitlines()
    pasted = shlex.split(lines[-1])
    assert pasted[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "freeflow_cli"]
    assert freeflow(*pasted[5:]).exit_code == 0
    name, arguments = api.calls[-1]
    config = arguments["config"]
    assert name == "distill"
    assert (config.teacher.name, config.seed, config.name) == ("stern", 9, "a-b")
    assert config.runtime.activation_checkpointing
    api.helps = False
    assert freeflow("distill", "--dry-run").exit_code == 0

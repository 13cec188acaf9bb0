"""What `--dry-run` prints of a plan."""

from cli_support import small_plan
from freeflow_cli.commands.training import facts, memory_table, network_table
from rich.console import Console

from freeflow_core import api


def lines(table):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    return [line.split() for line in captured.get().splitlines() if line.strip()]


def test_cli_plan_networks_have_their_size_and_passes():
    shown = lines(network_table(small_plan()))
    assert ["teacher", "674,816,272", "-", "1.54"] in shown
    assert ["student", "678,064,912", "1.00", "0.75"] in shown


def test_cli_plan_memory_adds_up_line_by_line():
    shown = lines(memory_table(small_plan()))
    assert shown[0][-1] == "GiB"
    assert ["teacher", "2.50", "-", "-", "-", "2.50"] in shown
    assert ["student", "2.00", "2.00", "4.00", "2.00", "10.00"] in shown
    assert ["activations", "28.00"] in shown
    assert ["gradient", "exchange", "2.00"] in shown
    assert shown[-1] == ["total", "42.50"]


def test_cli_plan_of_a_small_run_is_in_mebibytes_and_names_no_exchange_for_one_process():
    shown = lines(memory_table(small_plan(networks=(), activations=2**20, buckets=0)))
    assert shown[0][-1] == "MiB"
    assert shown[-2:] == [["activations", "1.00"], ["total", "1.00"]]


def test_cli_plan_facts_say_what_was_planned_for_and_the_work():
    found = dict(facts(small_plan()))
    assert found["planned for"] == "cuda, bf16, 2 processes"
    assert found["batch"] == "256 images: 2 processes x 2 passes of 64"
    assert found["work"] == "459.2 TFLOP per step, 183.7 PFLOP in all"
    assert found["time"].startswith("15.3 minutes, 0.5 device-hours, at 100 TFLOP/s")  # two devices not here
    for origin in api.RateFrom:
        time = dict(facts(small_plan(rate=api.Rate(1e12, origin))))["time"]
        assert time.startswith("25.5 hours, 51.0 device-hours, at 1 TFLOP/s")
        assert ("1.11 images/s" in time) is (origin is api.RateFrom.STEPS)
    assert "device-hours" not in dict(facts(small_plan(num_processes=1)))["time"]
    assert found["at one moment"].startswith("40.00 GiB")
    assert "free now" not in found
    assert dict(facts(small_plan(free=2**31)))["free now"] == "2.00 GiB (cuda)"
    assert "from the teacher" not in dict(facts(small_plan(load_report=None)))
    assert "teacher" not in found
    assert dict(facts(small_plan(teacher="sit from a.pt")))["teacher"] == "sit from a.pt"

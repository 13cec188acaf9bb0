"""Every registered component keeps the contract of its kind."""


def test_it_keeps_its_contract(run_check, kind, name, check):
    run_check(kind, name, check)

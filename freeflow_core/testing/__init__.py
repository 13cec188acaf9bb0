"""For plugin authors: exact oracles and contract tests."""

"""One contract a kind: what ours pass, and yours should. docs/how-to/test-a-plugin.md says what each check asks."""

"""One contract a kind: what ours pass, and yours should."""

"""What `freeflow doctor` looks at, one file a subject."""

"""Teachers made of anybody's network: a callable, a program in a file, a diffusers transformer."""

"""Writes the beginning of a plugin: an installable package with one small component that works."""

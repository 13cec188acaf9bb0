"""Guidance by something other than the null class."""

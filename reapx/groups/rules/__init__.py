"""Operator rules: how the channels of an operator's inputs become those of its output."""

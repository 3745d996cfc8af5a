"""Serialized residual networks: blocks relu(f(x) + shortcut(x)) rewritten as plain layers of the same function."""

"""Serialized residual networks: blocks relu(f(x) + shortcut(x)) as plain serial layers of the same function."""

"""Nodes that training drives to zero: an optimizer and penalties that do, a monitor, and their removal."""

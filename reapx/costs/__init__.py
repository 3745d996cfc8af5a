"""Costs of a network as functions of its widths: MACs, parameters, measured latency."""

"""Allocation: how many channels each group keeps."""

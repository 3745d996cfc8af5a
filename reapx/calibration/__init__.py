"""Calibration images: read once, stored within a memory limit, shared among processes, resumable."""

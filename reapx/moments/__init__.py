"""Moments: Gram matrices of layers' input patches, accumulated over the calibration images."""

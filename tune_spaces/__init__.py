"""Spaces of `anatomask sweep`, one file each; `anatomask.sweeps.space` says what a file holds."""

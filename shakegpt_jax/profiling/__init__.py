"""Measuring speed against the limits of the machine."""

"""Measure speed and memory as ratios, side by side, on the user's own machine and data."""

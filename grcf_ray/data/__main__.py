"""Run `python -m grcf_ray.data`, the same command as `grcf data`."""

from grcf_ray.cli import main

main("data")

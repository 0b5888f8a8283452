"""`python -m grcf_ray.report`: the same command as `grcf report`."""

from grcf_ray.cli import main

main("report")

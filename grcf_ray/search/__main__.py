"""`python -m grcf_ray.search`: the same command as `grcf search`."""

from grcf_ray.cli import main

main("search")

"""`python -m grcf_ray.bench`: the same command as `grcf bench`."""

from grcf_ray.cli import main

main("bench")

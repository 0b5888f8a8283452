"""`python -m grcf_ray.runs`: the same command as `grcf runs`."""

from grcf_ray.cli import main

if __name__ == "__main__":
    main("runs")

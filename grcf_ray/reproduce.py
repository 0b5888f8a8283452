"""`python -m grcf_ray.reproduce`: the same command as `grcf reproduce`."""

from grcf_ray.cli import main

if __name__ == "__main__":
    main("reproduce")

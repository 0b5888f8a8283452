"""The public API, imported lazily by `import grcf_ray`."""

"""The rivals of GRCF in the paper's tables, one module each; `docs/CONTRIBUTING.md` says how to add one."""

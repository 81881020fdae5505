"""Functions that run in child processes of this one."""

"""Runs that outlive the processes of their engines, which are killed: for tests and chaos runs."""

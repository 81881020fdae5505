"""Tests of ``taskiq_flow/dispatch/``."""

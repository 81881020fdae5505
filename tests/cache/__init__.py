"""Tests of ``taskiq_flow/cache/``."""

"""Tests of ``taskiq_flow/worker/``."""

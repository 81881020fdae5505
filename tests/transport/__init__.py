"""Tests of ``taskiq_flow/transport/``."""

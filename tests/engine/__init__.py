"""Tests of ``taskiq_flow/engine/``."""

"""Tests of ``taskiq_flow/completion/``."""

"""Tests of ``taskiq_flow/journal/``."""

"""Tests of ``taskiq_flow/dataflow/``."""

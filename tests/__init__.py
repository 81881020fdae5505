"""Tests of what the package does, one file for each of its modules."""

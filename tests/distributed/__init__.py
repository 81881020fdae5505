"""The contract over real servers and real worker processes."""

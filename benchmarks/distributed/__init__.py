"""The engine, and what stands beside it, over a real Redis and with real worker processes."""

"""Real servers and real worker processes on 127.0.0.1, for tests, benchmarks and chaos runs."""

"""Helpers that tests of several rooms, and benchmarks, share."""

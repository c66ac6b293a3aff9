"""Rendering for people: results as tables and lines. No module here computes a result."""

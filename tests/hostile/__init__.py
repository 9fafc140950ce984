"""Hostile input, a table for each reader: every case is refused in one line, or read correctly."""

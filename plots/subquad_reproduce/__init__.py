"""Reproductions of papers' tables: expectation files, their evaluation, runs and committed results."""

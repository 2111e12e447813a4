"""Figures and tables of a run directory of subquad. See plots/README.md."""

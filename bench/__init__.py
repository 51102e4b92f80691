"""Figures: many simulated nodes in one migration, and real nodes beside a script that does the same without kedge."""

"""Adaptation of a frozen model's latent or actor to a task: one method a module."""

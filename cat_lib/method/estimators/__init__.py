"""Estimators: from a group of rollouts to one pseudo-reference, or None."""

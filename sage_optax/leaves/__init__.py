"""Roles and axes of the leaves of a tree, with the evidence for them."""

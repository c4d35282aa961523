"""Frontends: each lowers a model of its framework into the graph and patches it back."""

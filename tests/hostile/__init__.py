"""Hostile files for the commands: a corpus, random mutations, and what must hold for each of them."""

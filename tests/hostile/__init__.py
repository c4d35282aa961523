"""Hostile files for the commands: a corpus, random damage, and what must hold for each file."""

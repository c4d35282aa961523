"""An example for every reason that a plan gives: what docs/refusals.md shows, and a test runs."""

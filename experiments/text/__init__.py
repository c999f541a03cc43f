"""The language models of the studies."""

"""One file per library or task, to copy: python examples/<name>.py."""

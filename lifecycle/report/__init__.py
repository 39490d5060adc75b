"""The report of a dry run."""

"""Values, ownership rules and errors; no I/O."""

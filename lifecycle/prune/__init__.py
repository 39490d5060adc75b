"""Removes what services that are gone for good left behind; shows its plan, and acts on --yes."""

"""Removes what earlier pods of this service left behind, and writes a fresh pre-auth key."""

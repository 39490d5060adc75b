"""Tests. Their folders correspond to those of the package."""

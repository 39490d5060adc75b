"""Tests of the program. For example, `tests/cleanup` has the tests of `lifecycle/cleanup`."""

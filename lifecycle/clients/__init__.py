"""The services in our words: methods that return values of `model.py` and raise errors of `errors.py`."""

"""Small stand-ins for the services that the lifecycle commands talk to."""

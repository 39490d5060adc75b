"""Create clients from the settings. No other module creates one."""

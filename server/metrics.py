"""Every metric: its object, its name and its unit."""

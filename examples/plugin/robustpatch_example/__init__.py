"""One plug-in of each kind; pyproject.toml gives them their names."""

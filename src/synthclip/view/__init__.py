"""The explorer: runs as a local web application. It reads runs and writes only its cache."""

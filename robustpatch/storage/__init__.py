"""Files that are there whole or not at all: places, checksums, locks, and bounded readers."""

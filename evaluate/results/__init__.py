"""Records -> numbers, tables and pictures."""

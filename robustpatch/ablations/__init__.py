"""Which pixels each ablated view keeps, and which views a patch can touch."""

"""How each kind of classifier looks to a search for patches; one file a defense."""

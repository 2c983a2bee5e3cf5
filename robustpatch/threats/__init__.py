"""What the attacker may change."""

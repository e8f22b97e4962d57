"""Ours and the peers timed side by side: see scripts/bench."""

"""Quality for the same time: ours and the peers, recipes, guidance. scripts/bench --quality runs it."""

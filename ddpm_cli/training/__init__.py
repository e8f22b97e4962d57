"""The training loop and what it needs: optimizers, learning rate, EMA, logging, previews."""

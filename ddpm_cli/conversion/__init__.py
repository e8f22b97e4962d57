"""Models of other programs in our terms, and ours in theirs."""

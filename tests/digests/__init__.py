"""`scripts/digests`: runs of a second that take every option of every group at least once, and digests of the bits.

For changes that are meant to change no number: the digests of the version before are in recorded.json. Everything goes
through the commands and the names that README promises, so that the code behind them may move.
"""

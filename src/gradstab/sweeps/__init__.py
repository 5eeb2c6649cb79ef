"""Sweeps: their cells, the ledger of what became of each, and its table."""

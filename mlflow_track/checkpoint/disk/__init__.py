"""The bytes of checkpoints on disk and the protocol that commits them; knows no run."""

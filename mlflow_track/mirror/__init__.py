"""The mirror: a process that reads the record and feeds an MLflow server."""

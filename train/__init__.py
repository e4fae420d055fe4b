"""The real job: a Transformer language model trained from scratch, tracked by mlflow_track."""

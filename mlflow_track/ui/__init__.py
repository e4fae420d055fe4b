"""The MLflow UI on a folder of runs."""

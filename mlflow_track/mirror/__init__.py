"""The mirror: a process that reads the record and feeds an MLflow server."""

# Where the trainer works: MLflow puts the artifacts of a store without a server there (./mlruns).
WORKING_FOLDER = "MLFLOW_TRACK_WORKING_FOLDER"

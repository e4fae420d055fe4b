"""`mlflow-track plan` and `mlflow-track ckpt …`: the commands about checkpoints."""

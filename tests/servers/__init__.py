"""Real servers on this machine: PostgreSQL, S3, MLflow on top of them. `make server` starts one."""

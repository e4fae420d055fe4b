"""MLflow as a destination."""

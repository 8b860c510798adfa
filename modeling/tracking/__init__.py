"""Reports of a run: logs, learning curves, progress, MLflow."""

"""What a researcher sees of a run: logs, learning curves, the model's summary, progress, MLflow."""

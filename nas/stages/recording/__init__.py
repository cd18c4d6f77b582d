"""What a run leaves behind: run.json, the tables, and the MLflow run that shows them; one file each."""

"""From run directories to one page, pictures and tables; reads event files, run.json and config.yaml, nothing else."""

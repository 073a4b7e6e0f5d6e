"""The two models inside Triton's Python backend. Imported only there: `triton_python_backend_utils` is nowhere else."""

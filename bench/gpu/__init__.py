"""What `bench/gpu_check.py` is made of: stages and their record, checks, measurements, the report."""

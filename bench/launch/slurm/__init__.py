"""Running a grid on Slurm: submission, the supervisor of each job, and what Slurm says."""

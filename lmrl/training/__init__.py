"""Training: run folders, checkpoints, devices, trackers, schedules, the supervised loop and the policy update."""
